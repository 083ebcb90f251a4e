// The few numbers that change between runs of one prepared graph; layout shared with core::Step.
#pragma once
#include <cstdint>

struct Step {
    uint32_t pos;         // position of the first row of this run
    uint32_t kv_len;      // valid KV rows after this run
    uint32_t valid_rows;  // rows of this run that hold tokens
    uint32_t draw;        // number of this draw
};
