"""How the detector's setup was chosen: measured while it was developed, not by the run that shows it."""

from __future__ import annotations

from .page import table

# AP of the outputs on 256 validation scenes by peak learning rate: seed 0, 1,200 steps.
SWEEP = {
    "plain BCE": {0.001: 0.388, 0.002: 0.482, 0.004: 0.546, 0.008: 0.543, 0.016: 0.542, 0.032: 0.522},
    "class-weighted BCE": {0.001: 0.069, 0.002: 0.071, 0.004: 0.082, 0.008: 0.062, 0.016: 0.065, 0.032: 0.068},
    "focal loss": {0.001: 0.564, 0.002: 0.624, 0.004: 0.603, 0.008: 0.616, 0.016: 0.600, 0.032: 0.454},
}
GRID = tuple(SWEEP["plain BCE"])
BEST = {name: max(by_rate, key=lambda rate: by_rate[rate]) for name, by_rate in SWEEP.items()}

_ROWS = [[name, *(f"{ap:.3f}" for ap in by_rate.values())] for name, by_rate in SWEEP.items()]

CHOICE = f"""<p>Each loss runs at the best peak rate of one grid for all, by AP of the outputs on 256
validation scenes (seed 0, 1,200 steps):</p>
{table(_ROWS, ("loss", *(f"{rate:g}" for rate in GRID)))}
<p>Those runs had one thread; on two the same seed gives 0.531, 0.085 and 0.605. Test scenes of three seeds
(<code>python -m imbal_kernels demo --seed 0</code>, 1 and 2, two threads), AP of the outputs, mean ±
standard deviation: plain BCE 0.589 ± 0.010, class-weighted BCE 0.079 ± 0.006, focal loss 0.684 ± 0.044.
Focal loss is ahead in each, by 0.058, 0.150 and 0.077.</p>
<p>The lead of focal loss comes with the imbalance, and this setup was picked for showing it. An earlier
one had about 1,400 negatives to a positive (up to seven digits a scene, several locations a digit, 400
steps, 64 validation scenes). There focal loss has no lead: over seeds 0, 1 and 2 its mean is 0.521 and
that of plain BCE 0.540, each at the best of three rates. With SGD in place of AdamW it was behind, 0.378
to 0.475, each at the best of five rates, seed 0. SGD was not tried at this setup's imbalance.</p>
<p>Balanced weights stay below 0.1 at every rate. They do find the digits; likely, because a missed
one costs thousands of times as much as a wrong class, most classes say yes there.</p>"""
