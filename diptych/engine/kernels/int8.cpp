// y = x Wᵀ + b, where W is kept as signed bytes and x stays float32.
//
// W[o][i] = scale[o][i / GROUP] * code[o][i]. There is one numeric path: within a group of inputs an output is a chain of
// fused multiply-adds of activations and codes in the order of the inputs, from zero; groups are then added in order,
// each as one fused multiply-add with its scale; the bias comes last. How many rows a call works on, whether codes are
// turned into floats on the fly or once for many rows (both are exact), and how outputs are divided among threads only
// change which registers are used.
#include <algorithm>
#include <vector>

#include "simd.h"

extern "C" {

struct Int8Matrix {
    const int8_t* codes;  // [num_tiles][in_features][TILE]: TILE outputs side by side, zero beyond the last one
    const float* scales;  // [num_tiles][num_groups][TILE]
    const float* bias;    // [out_features], or null
    int64_t out_features;
    int64_t in_features;
};
}

namespace {

constexpr int TILE = 64;        // outputs: their codes for one input are one cache line; as in quantization.py
constexpr int GROUP = 64;       // inputs that share a scale; as in quantization.py
constexpr int ROW_BLOCK = 192;  // rows whose activations stay in the second-level cache while all codes pass by
constexpr int AHEAD = 128;      // inputs whose codes are asked for before they are needed: 8 KiB
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 6, MAX_SUMS = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int MAX_ROWS = 6, MAX_SUMS = 12;  // of 16
#else
constexpr int MAX_ROWS = 4, MAX_SUMS = 8;
#endif
constexpr int DIRECT_ROWS = 3 * MAX_ROWS;  // so many, and codes become floats on the fly; for more, once for all of them

inline vf widen(const float* from) { return load(from); }

inline vf widen(const int8_t* from) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
    vf value;
    for (int i = 0; i < W; ++i) value[i] = float(from[i]);
    return value;
#endif
}

// Vectors of a tile that are worked on at once.
constexpr int num_vectors(int num_rows) {
    int vectors = TILE / W;
    while (vectors > 1 && num_rows * vectors > MAX_SUMS) vectors /= 2;
    return vectors;
}

// sums[r][0 .. TILE) += scales * sum over k of rows[r][k] * codes[k][0 .. TILE), one group. Meanwhile codes that come
// later, at `ahead`, are fetched: reading weights then overlaps with arithmetic (docs/decisions/013).
template <int ROWS, typename Code>
void add_group(const float* rows, int64_t stride, const Code* codes, const float* scales, int count, float* sums,
               const int8_t* ahead) {
    constexpr int V = num_vectors(ROWS);
    for (int column = 0; column < TILE; column += V * W) {
        vf acc[ROWS][V] = {};
        for (int k = 0; k < count; ++k) {
            __builtin_prefetch(ahead + k * TILE);
            vf weights[V];
            for (int v = 0; v < V; ++v) weights[v] = widen(codes + k * TILE + column + v * W);
            for (int r = 0; r < ROWS; ++r) {
                const vf activation = fill(rows[r * stride + k]);
                for (int v = 0; v < V; ++v) acc[r][v] = fma(activation, weights[v], acc[r][v]);
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < V; ++v) {
                float* sum = sums + r * TILE + column + v * W;
                store(sum, fma(acc[r][v], load(scales + column + v * W), load(sum)));
            }
    }
}

template <int ROWS, typename Code>
void add_rows(int num_rows, const float* rows, int64_t stride, const Code* codes, const float* scales, int count,
              float* sums, const int8_t* ahead) {
    if (num_rows == ROWS) return add_group<ROWS>(rows, stride, codes, scales, count, sums, ahead);
    if constexpr (ROWS > 1) add_rows<ROWS - 1>(num_rows, rows, stride, codes, scales, count, sums, ahead);
}

// All rows, in blocks of nearly the same size.
template <typename Code>
void add_blocks(int64_t num_rows, const float* rows, int64_t stride, const Code* codes, const float* scales, int count,
                float* sums, const int8_t* ahead) {
    for (int64_t num_blocks = (num_rows + MAX_ROWS - 1) / MAX_ROWS; num_blocks > 0; --num_blocks) {
        const int64_t size = num_rows / num_blocks;
        add_rows<MAX_ROWS>(int(size), rows, stride, codes, scales, count, sums, ahead);
        num_rows -= size, rows += size * stride, sums += size * TILE;
    }
}

// One tile of outputs for some rows. sums: [num_rows][TILE], memory to work in.
void multiply_tile(const Int8Matrix& m, int64_t tile, const float* rows, int64_t num_rows, float* sums, float* out) {
    const int64_t in = m.in_features, num_groups = (in + GROUP - 1) / GROUP;
    const int8_t* codes = m.codes + tile * in * TILE;
    const float* scales = m.scales + tile * num_groups * TILE;
    std::fill(sums, sums + num_rows * TILE, 0.0f);
    for (int64_t first = 0; first < in; first += GROUP, codes += GROUP * TILE, scales += TILE) {
        const int count = int(std::min<int64_t>(GROUP, in - first));
        const int8_t* ahead = codes + AHEAD * TILE;
        if (num_rows <= DIRECT_ROWS) {
            add_blocks(num_rows, rows + first, in, codes, scales, count, sums, ahead);
        } else {
            alignas(64) float wide[GROUP * TILE];
            for (int i = 0; i < count * TILE; i += W) store(wide + i, widen(codes + i));
            add_blocks(num_rows, rows + first, in, wide, scales, count, sums, ahead);
        }
    }
    const int64_t begin = tile * TILE, width = std::min<int64_t>(TILE, m.out_features - begin);
    for (int64_t row = 0; row < num_rows; ++row) {
        float* __restrict to = out + row * m.out_features + begin;
        const float* __restrict sum = sums + row * TILE;
        for (int64_t i = 0; i < width; ++i) to[i] = m.bias ? sum[i] + m.bias[begin + i] : sum[i];
    }
}

}  // namespace

extern "C" {

// rows: [num_rows][in_features]; out: [num_rows][out_features]; both contiguous.
void diptych_int8_linear(const Int8Matrix* matrix, const float* rows, int64_t num_rows, float* out, int threads) {
    const Int8Matrix& m = *matrix;
    const int64_t num_tiles = (m.out_features + TILE - 1) / TILE;
    for (int64_t first = 0; first < num_rows; first += ROW_BLOCK) {
        const int64_t count = std::min<int64_t>(ROW_BLOCK, num_rows - first);
#pragma omp parallel for num_threads(threads) if (threads > 1)
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            thread_local std::vector<float> sums(ROW_BLOCK * TILE);
            multiply_tile(m, tile, rows + first * m.in_features, count, sums.data(), out + first * m.out_features);
        }
    }
}
}
