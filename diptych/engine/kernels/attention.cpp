// Causal attention over a paged KV pool, for every kind of row: one token of a decode step or a chunk of a prompt.
//
// There is one numeric path. For a query and a head, keys are taken in tiles of TILE at fixed positions 0, TILE, ...;
// in a tile, scores are chains of fused multiply-adds over the head's dimensions in order, the softmax is the online
// one (https://arxiv.org/abs/1805.02867), and values are added in the order of their keys. How many queries a call
// works on at once, which block holds a key, and who else is in the batch only change which registers are used. Keys
// in a query's future weigh exactly 0, and no memory beyond the sequence's last token is used in any result.
//
// Tiles of keys are transposed once for all queries of a task, so that a vector holds W keys of one dimension and no
// sum across lanes is needed. Scores and values are then the same small product, `multiply_rows`.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <vector>

#include "simd.h"

extern "C" {

struct Geometry {
    float* pool;            // [block, layer, 2, kv_head, block_size, head_dim]
    int64_t block_stride;   // all strides in floats
    int64_t layer_stride;
    int64_t half_stride;    // from keys to values
    int64_t head_stride;    // from one KV head to the next
    int64_t block_size;
    int64_t head_dim;
    int64_t num_heads;
    int64_t num_kv_heads;
};

struct Task {
    int64_t first_token;  // of the step
    int64_t count;        // tokens
    int64_t position;     // of the first token in its sequence
    int64_t table;        // where the sequence's block table starts in `tables`
};

struct Step {
    const Task* tasks;
    const int32_t* tables;
    const int64_t* slots;  // [num_tokens]: floats from the pool's start to the token's first key in layer 0
    int64_t num_tasks;
    int64_t num_tokens;
};

// The rows of one kind, [num_tokens][heads][head_dim] with `stride` floats from token to token.
struct Rows {
    float* data;
    int64_t stride;
};
}

namespace {

constexpr int TILE = 64;            // keys; a multiple of every W
constexpr int TASK_ROWS = 96;       // query rows (tokens x heads that share a KV head) a task aims at
constexpr int MAX_HEAD_DIM = 1024;  // as in native.py
#if defined(__AVX512F__)
constexpr int MAX_ROWS = 6, MAX_VECTORS = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int MAX_ROWS = 6, MAX_VECTORS = 2;  // 12 of 16
#else
constexpr int MAX_ROWS = 4, MAX_VECTORS = 2;
#endif

// sums[r][0 .. VECTORS * W) += sum over k of weights[r][k] * rows[k][column ..), each as one chain in the order of k.
template <int ROWS, int VECTORS>
void multiply_block(const float* weights, int64_t weights_stride, const float* const* rows, int64_t column, int count,
                    float* sums, int64_t sums_stride) {
    vf acc[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) acc[r][v] = load(sums + r * sums_stride + v * W);
    for (int k = 0; k < count; ++k) {
        const float* row = rows[k] + column;
        vf values[VECTORS];
        for (int v = 0; v < VECTORS; ++v) values[v] = load(row + v * W);
        for (int r = 0; r < ROWS; ++r) {
            const vf weight = fill(weights[r * weights_stride + k]);
            for (int v = 0; v < VECTORS; ++v) acc[r][v] = fma(weight, values[v], acc[r][v]);
        }
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(sums + r * sums_stride + v * W, acc[r][v]);
}

template <int ROWS, int VECTORS>
void multiply_columns(const float* weights, int64_t weights_stride, const float* const* rows, int num_vectors,
                      int count, float* sums, int64_t sums_stride) {
    int vector = 0;
    for (; vector + VECTORS <= num_vectors; vector += VECTORS)
        multiply_block<ROWS, VECTORS>(weights, weights_stride, rows, vector * W, count, sums + vector * W, sums_stride);
    if constexpr (VECTORS > 1)
        if (vector < num_vectors)
            for (; vector < num_vectors; ++vector)
                multiply_block<ROWS, 1>(weights, weights_stride, rows, vector * W, count, sums + vector * W,
                                        sums_stride);
}

template <int ROWS>
void multiply_rows(const float* weights, int64_t weights_stride, const float* const* rows, int num_vectors, int count,
                   float* sums, int64_t sums_stride, int num_rows) {
    for (; num_rows >= ROWS; num_rows -= ROWS) {
        multiply_columns<ROWS, MAX_VECTORS>(weights, weights_stride, rows, num_vectors, count, sums, sums_stride);
        weights += ROWS * weights_stride;
        sums += ROWS * sums_stride;
    }
    if constexpr (ROWS > 1)
        if (num_rows)
            multiply_rows<ROWS - 1>(weights, weights_stride, rows, num_vectors, count, sums, sums_stride, num_rows);
}

// Lane i of the result's vectors: first a's and b's lower halves, interleaved, then their upper halves.
inline void interleave(vf a, vf b, vf& low, vf& high) {
#if defined(__AVX512F__)
    const __m512i low_lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    low = _mm512_permutex2var_ps(a, low_lanes, b);
    high = _mm512_permutex2var_ps(a, _mm512_add_epi32(low_lanes, _mm512_set1_epi32(8)), b);
#elif defined(__AVX__)
    const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b);
    low = _mm256_permute2f128_ps(even, odd, 0x20);
    high = _mm256_permute2f128_ps(even, odd, 0x31);
#else
    low = vf{a[0], b[0], a[1], b[1]};
    high = vf{a[2], b[2], a[3], b[3]};
#endif
}

// W rows of W numbers: interleaving rows half the matrix apart, log2(W) times, is a transposition.
inline void transpose(vf (&m)[W]) {
    vf other[W];
    for (int stage = 1; stage < W; stage *= 2) {
        for (int i = 0; i < W / 2; ++i) interleave(m[i], m[i + W / 2], other[2 * i], other[2 * i + 1]);
        for (int i = 0; i < W; ++i) m[i] = other[i];
    }
}

// Where a tile's keys lie, for the first KV head; beyond the last key the last one again.
struct Tile {
    const float* keys[TILE];
    int runs[TILE + 1];  // where in `keys` a new block begins, and at the end `count`
    int count, num_runs = 0;

    Tile(const Geometry& g, const float* base, const int32_t* table, int64_t first_key, int64_t num_keys)
        : count(int(std::min<int64_t>(TILE, num_keys - first_key))) {
        for (int i = 0; i < count;) {
            const int64_t block = (first_key + i) / g.block_size, offset = (first_key + i) % g.block_size;
            const float* key = base + table[block] * g.block_stride + offset * g.head_dim;
            runs[num_runs++] = i;
            for (int64_t left = g.block_size - offset; left && i < count; --left, ++i, key += g.head_dim) keys[i] = key;
        }
        runs[num_runs] = count;
        for (int i = count; i < TILE; ++i) keys[i] = keys[count - 1];
    }
};

// Read a number of every cache line of W tokens from `first`, all heads' keys, then all values: in the order of memory,
// in which the heads of a block lie side by side. The processor's own prefetcher follows such a run and nothing else:
// going head by head, with or without prefetch instructions, took 1.4 times as long (docs/decisions/012).
inline void touch(const Tile& tile, int first, int64_t num_heads, const Geometry& g) {
    const int end_key = std::min(first + W, tile.count);
    for (int run = 0; run < tile.num_runs; ++run) {
        const int from = std::max(first, tile.runs[run]), to = std::min(end_key, tile.runs[run + 1]);
        if (from >= to) continue;
        for (int half = 0; half < 2; ++half)
            for (int64_t head = 0; head < num_heads; ++head) {
                const float* at = tile.keys[from] + half * g.half_stride + head * g.head_stride;
                const float* end = at + (to - from) * g.head_dim;
                for (; at < end; at += 16) (void)*static_cast<const volatile float*>(at);  // 64 bytes a line
            }
    }
}

void transpose_keys(const float* const* rows, int head_dim, float* to) {
    int dim = 0;
    for (; dim + W <= head_dim; dim += W) {
        vf m[W];
        for (int i = 0; i < W; ++i) m[i] = load(rows[i] + dim);
        transpose(m);
        for (int i = 0; i < W; ++i) store(to + (dim + i) * TILE, m[i]);
    }
    for (; dim < head_dim; ++dim)
        for (int i = 0; i < W; ++i) to[dim * TILE + i] = rows[i][dim];
}

// One thread's memory for a task, kept between calls.
struct Scratch {
    std::unique_ptr<float, decltype(&std::free)> memory{nullptr, &std::free};
    size_t capacity = 0;

    float* reserve(size_t count) {
        if (count > capacity) {
            const size_t bytes = (count * sizeof(float) + 63) / 64 * 64;
            memory.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
            if (!memory) std::abort();
            capacity = count;
        }
        return memory.get();
    }
};

// One query's softmax over one tile: scores become weights; returns what earlier sums must be multiplied with.
inline float soften(float* scores, int visible, int num_vectors, float& peak, float* lane_totals) {
    vf highest = fill(-INFINITY);
    const vi lane = [] {
        vi lanes{};
        for (int i = 0; i < W; ++i) lanes[i] = i;
        return lanes;
    }();
    for (int v = 0; v < num_vectors; ++v) {
        const vf score = load(scores + v * W);
        const vf seen = lane + v * W < visible ? score : fill(-INFINITY);
        highest = seen > highest ? seen : highest;
    }
    const float tile_peak = max_lanes(highest);
    const float new_peak = tile_peak > peak ? tile_peak : peak;
    const float scale = peak == new_peak ? 1.0f : exp(fill(peak - new_peak))[0];
    peak = new_peak;
    vf total = load(lane_totals) * scale;
    for (int v = 0; v < num_vectors; ++v) {
        const vf weight = exp(load(scores + v * W) - new_peak);
        const vf seen = lane + v * W < visible ? weight : vf{};
        total += seen;
        store(scores + v * W, seen);
    }
    store(lane_totals, total);
    return scale;
}

void store_tokens(const Geometry& g, const Step& step, int64_t layer, Rows key, Rows value) {
    for (int64_t token = 0; token < step.num_tokens; ++token) {
        float* to = g.pool + step.slots[token] + layer * g.layer_stride;
        for (int64_t head = 0; head < g.num_kv_heads; ++head, to += g.head_stride) {
            const size_t bytes = g.head_dim * sizeof(float);
            std::memcpy(to, key.data + token * key.stride + head * g.head_dim, bytes);
            std::memcpy(to + g.half_stride, value.data + token * value.stride + head * g.head_dim, bytes);
        }
    }
}

// A task's queries of some KV heads, with the running sums of their softmax. Sizes in floats.
struct Queries {
    int num_rows, dim, width;  // rows: tokens x heads of the group; width: dim rounded up to whole vectors
    float *scaled, *sums, *totals, *peaks;  // [num_rows][dim], [num_rows][width], [num_rows][W], [num_rows]

    static size_t size(int num_rows, int dim, int width) { return size_t(num_rows) * (dim + width + W + 1); }

    Queries(float* memory, const Task& task, Rows query, int64_t kv_head, int group, int dim, int width)
        : num_rows(int(task.count) * group), dim(dim), width(width), scaled(memory),
          sums(scaled + size_t(num_rows) * dim), totals(sums + size_t(num_rows) * width),
          peaks(totals + size_t(num_rows) * W) {
        const float scale = 1.0f / std::sqrt(float(dim));
        for (int64_t token = 0; token < task.count; ++token) {
            const float* from = query.data + (task.first_token + token) * query.stride + kv_head * group * dim;
            for (int i = 0; i < group * dim; ++i) scaled[token * group * dim + i] = from[i] * scale;
        }
        std::fill(sums, totals + size_t(num_rows) * W, 0.0f);
        std::fill(peaks, peaks + num_rows, -INFINITY);
    }

    // Take in one tile. turned: keys as [dim][TILE]; visible(row): how many of the tile's keys a row sees.
    template <typename Visible>
    void take(const float* const* turned, const float* const* values, int count, int first_row, float* scores,
              Visible visible) {
        const int num_vectors = (count + W - 1) / W;
        std::fill(scores, scores + size_t(num_rows - first_row) * TILE, 0.0f);
        multiply_rows<MAX_ROWS>(scaled + size_t(first_row) * dim, dim, turned, num_vectors, dim, scores, TILE,
                                num_rows - first_row);
        for (int row = first_row; row < num_rows; ++row) {
            const float rescale = soften(scores + size_t(row - first_row) * TILE, visible(row), num_vectors, peaks[row],
                                         totals + size_t(row) * W);
            if (rescale != 1.0f)
                for (float *sum = sums + size_t(row) * width, *end = sum + width; sum < end; sum += W)
                    store(sum, load(sum) * rescale);
        }
        multiply_rows<MAX_ROWS>(scores, TILE, values, width / W, count, sums + size_t(first_row) * width, width,
                                num_rows - first_row);
    }

    void finish(const Task& task, Rows out, int64_t kv_head, int group) const {
        for (int row = 0; row < num_rows; ++row) {
            const float total = sum_lanes(load(totals + size_t(row) * W));
            float* to = out.data + (task.first_token + row / group) * out.stride;
            to += (kv_head * group + row % group) * dim;
            for (int d = 0; d < dim; ++d) to[d] = sums[size_t(row) * width + d] / total;
        }
    }
};

// The queries of one task and `num_heads` KV heads from `first_head`, tile by tile.
void attend_task(const Geometry& g, const Step& step, const Task& task, int64_t first_head, int64_t num_heads,
                 int64_t layer, Rows query, Rows out) {
    thread_local Scratch scratch;
    thread_local std::vector<Queries> heads;
    const int dim = int(g.head_dim), group = int(g.num_heads / g.num_kv_heads), num_rows = int(task.count) * group;
    const int width = (dim + W - 1) / W * W;
    const bool padded = width != dim;  // a value's last vector would reach into its neighbour
    const size_t queries_size = (Queries::size(num_rows, dim, width) + 15) / 16 * 16;
    float* turned = scratch.reserve(TILE * (size_t(dim) * num_heads + width + num_rows) + num_heads * queries_size);
    float* wide_values = turned + TILE * size_t(dim) * num_heads;  // turned: [num_heads][dim][TILE]
    float* scores = wide_values + TILE * size_t(width);            // wide_values: [TILE][width]
    float* memory = scores + TILE * size_t(num_rows);              // scores: [num_rows][TILE]
    const float* turned_rows[MAX_HEAD_DIM];

    heads.clear();
    for (int64_t i = 0; i < num_heads; ++i)
        heads.emplace_back(memory + i * queries_size, task, query, first_head + i, group, dim, width);

    const int32_t* table = step.tables + task.table;
    const float* base = g.pool + layer * g.layer_stride + first_head * g.head_stride;
    const int64_t num_keys = task.position + task.count;
    for (int64_t first_key = 0; first_key < num_keys; first_key += TILE) {
        const Tile tile(g, base, table, first_key, num_keys);
        // Tokens before the tile see nothing of it.
        const int first_row = int(std::max<int64_t>(0, first_key - task.position)) * group;
        const auto visible = [&](int row) {
            return int(std::min<int64_t>(tile.count, task.position + row / group - first_key + 1));
        };
        for (int first = 0; first < tile.count; first += W) {
            touch(tile, first, num_heads, g);
            for (int64_t head = 0; head < num_heads; ++head) {
                const float* keys[W];
                for (int i = 0; i < W; ++i) keys[i] = tile.keys[first + i] + head * g.head_stride;
                transpose_keys(keys, dim, turned + head * TILE * dim + first);
            }
        }
        for (int64_t head = 0; head < num_heads; ++head) {
            const float* values[TILE];
            for (int i = 0; i < TILE; ++i) values[i] = tile.keys[i] + head * g.head_stride + g.half_stride;
            for (int d = 0; d < dim; ++d) turned_rows[d] = turned + size_t(head * dim + d) * TILE;
            for (int i = 0; padded && i < tile.count; ++i) {
                std::memcpy(wide_values + i * width, values[i], dim * sizeof(float));
                std::fill(wide_values + i * width + dim, wide_values + (i + 1) * width, 0.0f);
                values[i] = wide_values + i * width;
            }
            heads[head].take(turned_rows, values, tile.count, first_row, scores, visible);
        }
    }
    for (int64_t head = 0; head < num_heads; ++head) heads[head].finish(task, out, first_head + head, group);
}

}  // namespace

extern "C" {

// Tokens of one task, so that its rows and their sums stay in the cache.
int64_t diptych_task_tokens(int64_t group) { return std::max<int64_t>(1, TASK_ROWS / group); }

// Store the step's keys and values, then attend. query, out: num_heads heads; key, value: num_kv_heads.
void diptych_attend(const Geometry* geometry, const Step* step, int64_t layer, Rows query, Rows key, Rows value,
                    Rows out, int threads) {
    const Geometry& g = *geometry;
    store_tokens(g, *step, layer, key, value);
    // A thread alone takes all heads of a task at once, since that reads memory in longer pieces.
    const int64_t parts = threads > 1 ? g.num_kv_heads : 1, heads = g.num_kv_heads / parts;
    const int64_t num_items = step->num_tasks * parts;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < num_items; ++i)
        attend_task(g, *step, step->tasks[i / parts], i % parts * heads, heads, layer, query, out);
}
}
