"""scikit-learn's and imbalanced-learn's estimator checks, as imbalanced-learn runs them on its own samplers."""

import imblearn.over_sampling as theirs
import pytest
from imblearn.utils import estimator_checks as their_checks
from sklearn.utils import estimator_checks

import imbal_kernels.imblearn as ours

NAMES = ("SMOTE", "BorderlineSMOTE", "SVMSMOTE", "KMeansSMOTE", "ADASYN", "SMOTEN")
SAMPLERS = [getattr(ours, name)(random_state=42) for name in NAMES]
SMOTENC = ours.SMOTENC(categorical_features=[0], random_state=42)
# Not run by imbalanced-learn, which skips SMOTENC, and not passed by its class either.
SMOTENC_FAILS = {"check_samplers_string": "all columns are strings, and it needs numbers"}


def name_of(value):
    if isinstance(value, ours.BaseOverSampler):
        return type(value).__name__
    return estimator_checks._get_check_estimator_ids(value)


def every(generator):
    pairs = [pair for sampler in SAMPLERS for pair in generator(sampler)]
    return pytest.mark.parametrize("estimator, check", pairs, ids=name_of)


@every(estimator_checks.estimator_checks_generator)
def test_scikit_learns_checks(estimator, check):
    their_checks._set_checking_parameters(estimator)
    check(estimator)


@pytest.mark.filterwarnings("ignore:Passing a sparse matrix to SMOTEN")
@every(their_checks.estimator_checks_generator)
def test_imbalanced_learns_checks(estimator, check):
    their_checks._set_checking_parameters(estimator)
    if name_of(check) == "check_samplers_fit" and type(estimator).__name__ == "KMeansSMOTE":
        # Its data has no cluster that KMeansSMOTE would take, theirs either.
        for sampler in (estimator, theirs.KMeansSMOTE(**estimator.get_params())):
            with pytest.raises(RuntimeError, match="No clusters found with sufficient samples"):
                check(sampler)
        return
    check(estimator)


@pytest.mark.parametrize("estimator", SAMPLERS, ids=name_of)
def test_parameters_and_column_names(estimator):
    their_checks._set_checking_parameters(estimator)
    their_checks.check_param_validation(type(estimator).__name__, estimator)
    their_checks.check_dataframe_column_names_consistency(type(estimator).__name__, estimator)


@pytest.mark.parametrize("check", [check for _, check in their_checks.estimator_checks_generator(SMOTENC)], ids=name_of)
def test_checks_of_smotenc(check):
    if their_checks._check_name(check) not in SMOTENC_FAILS:
        check(SMOTENC)
        return
    for sampler in (SMOTENC, theirs.SMOTENC(categorical_features=[0], random_state=42)):
        with pytest.raises(ValueError, match="SMOTE-NC is not designed to work only with categorical"):
            check(sampler)
