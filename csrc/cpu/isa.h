// Everything an instruction set's file includes before it switches the compiler's target: what is
// included after that is compiled for that target alone and stays in a namespace of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>

#include <torch/headeronly/util/Half.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "denormals.h"
#include "knn.h"
#include "sigmoid_loss.h"
#include "softmax_loss.h"
