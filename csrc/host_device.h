// Functions that a kernel and the host share.
#pragma once

#if defined(__CUDACC__)
#define IMBAL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define IMBAL_HOST_DEVICE inline
#endif
