// The arithmetic between a layer's matrix products, each as one pass over the rows. A row's result depends on the row
// alone: rows are only ever divided among threads.
#include <cmath>

#include "simd.h"

namespace {

// 1 / sqrt(mean of squares + eps)
float inverse_rms(const float* row, int64_t size, float eps) {
    vf sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= size; i += 4 * W)
        for (int k = 0; k < 4; ++k) {
            const vf value = load(row + i + k * W);
            sums[k] = fma(value, value, sums[k]);
        }
    for (; i + W <= size; i += W) sums[0] = fma(load(row + i), load(row + i), sums[0]);
    float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
    for (; i < size; ++i) total += row[i] * row[i];
    return 1.0f / std::sqrt(total / float(size) + eps);
}

void rotate_head(float* __restrict head, const float* __restrict cosines, const float* __restrict sines, int64_t half) {
    float* __restrict other = head + half;
    for (int64_t i = 0; i < half; ++i) {
        const float first = head[i], second = other[i];
        head[i] = first * cosines[i] - second * sines[i];
        other[i] = second * cosines[i] + first * sines[i];
    }
}

void scale_head(float* __restrict head, const float* __restrict weight, int64_t dim, float eps) {
    const float scale = inverse_rms(head, dim, eps);
    for (int64_t i = 0; i < dim; ++i) head[i] = weight[i] * (head[i] * scale);
}

}  // namespace

extern "C" {

// hidden += delta (unless null), then out = weight * hidden / rms(hidden). All [num_rows][size] but weight [size].
void diptych_add_norm(float* hidden, const float* delta, const float* weight, float* out, int64_t num_rows,
                      int64_t size, float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < num_rows; ++row) {
        float* __restrict here = hidden + row * size;
        float* __restrict to = out + row * size;
        if (delta) {
            const float* __restrict add = delta + row * size;
            for (int64_t i = 0; i < size; ++i) here[i] += add[i];
        }
        const float scale = inverse_rms(here, size, eps);
        for (int64_t i = 0; i < size; ++i) to[i] = weight[i] * (here[i] * scale);
    }
}

// In place. heads: [num_rows][stride], of which the first num_heads + num_kv_heads heads of `dim` are queries and keys;
// cosines, sines: [num_rows][dim / 2]; query_norm, key_norm: [dim], or null.
void diptych_rotate(float* heads, int64_t stride, const float* cosines, const float* sines, const float* query_norm,
                    const float* key_norm, int64_t num_rows, int64_t num_heads, int64_t num_kv_heads, int64_t dim,
                    float eps, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t head = 0; head < num_heads + num_kv_heads; ++head) {
            float* here = heads + row * stride + head * dim;
            const float* norm = head < num_heads ? query_norm : key_norm;
            if (norm) scale_head(here, norm, dim, eps);
            rotate_head(here, cosines + row * dim / 2, sines + row * dim / 2, dim / 2);
        }
}

// out = silu(gate) * up. gate_up: [num_rows][2 * size], gate first; out: [num_rows][size].
void diptych_silu_mul(const float* gate_up, float* out, int64_t num_rows, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t row = 0; row < num_rows; ++row) {
        const float *gate = gate_up + row * 2 * size, *up = gate + size;
        float* to = out + row * size;
        int64_t i = 0;
        for (; i + W <= size; i += W) {
            const vf x = load(gate + i);
            store(to + i, x / (1.0f + exp(-x)) * load(up + i));
        }
        if (i < size) {  // the same arithmetic on a padded vector
            float x[W] = {}, y[W] = {};
            std::memcpy(x, gate + i, (size - i) * sizeof(float));
            std::memcpy(y, up + i, (size - i) * sizeof(float));
            store(x, load(x) / (1.0f + exp(-load(x))) * load(y));
            std::memcpy(to + i, x, (size - i) * sizeof(float));
        }
    }
}
}
