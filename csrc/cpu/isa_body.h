// The kernels for one instruction set: IMBAL_ISA names the namespace, IMBAL_BYTES the vector width.
namespace imbal {
namespace IMBAL_ISA {

#include "simd.h"

#include "numerics.h"

#include "formulas.h"

#include "convert.h"

#include "decode.h"

#include "count.h"

#include "stream.h"

#include "knn_kernel.h"

#include "softmax.h"

#include "softmax_tile.h"

#define IMBAL_STRING_(x) #x
#define IMBAL_STRING(x) IMBAL_STRING_(x)
static const Backend backend{IMBAL_STRING(IMBAL_ISA), sigmoid_loss, count_targets, &knn_kernels, softmax_loss};

}  // namespace IMBAL_ISA
}  // namespace imbal
