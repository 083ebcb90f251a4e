// What both kernels of the convolution with one input channel take.
#pragma once
#include <cstdint>

struct Conv1Params {
    const void* x;
    const void* w;
    const void* b;
    void* y;
    uint32_t width, out_width, pixels, channels;
    uint32_t relu;
    // conv1: threads per group of 8 channels, each takes every slots-th pixel. conv1_mma: warps per 128 channels, each
    // takes every slots-th 16 pixels.
    uint32_t slots;
};
