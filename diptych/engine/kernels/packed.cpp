// y = x W^T + b for a few rows, straight from the panels into which oneDNN has packed W.
//
// oneDNN's own kernels need two rows at least to be exact and reach two thirds of the memory's bandwidth; this one reads
// each panel once, in order. It adds in oneDNN's order (one fused chain per output over `chunk` inputs, then the next
// chunk's on top), so that a row has the same bits whichever of the two computed it.
#include "simd.h"

namespace {

constexpr int AHEAD = 16;  // inputs fetched in advance

// Outputs [first, first + VECTORS * W) of ROWS rows. x: [ROWS][in]; w: one panel, [in][panel]; y: [ROWS][out].
template <int ROWS, int VECTORS>
void panel_part(const float* __restrict x, int64_t in, const float* __restrict w, int64_t panel, int64_t chunk,
                const float* bias, float* __restrict y, int64_t out, int64_t first) {
    vf total[ROWS][VECTORS];
    for (int64_t begin = 0; begin < in; begin += chunk) {
        const int64_t end = begin + chunk < in ? begin + chunk : in;
        vf sums[ROWS][VECTORS] = {};
        for (int64_t k = begin; k < end; ++k) {
            const float* __restrict column = w + k * panel;
            __builtin_prefetch(column + AHEAD * panel);
            for (int v = 0; v < VECTORS; ++v) {
                const vf weight = load(column + v * W);
                for (int r = 0; r < ROWS; ++r) sums[r][v] = fma(fill(x[r * in + k]), weight, sums[r][v]);
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) total[r][v] = begin ? total[r][v] + sums[r][v] : sums[r][v];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) {
            float lanes[W];
            store(lanes, total[r][v]);
            for (int i = 0; i < W; ++i) {
                const int64_t n = first + v * W + i;
                if (n < out) y[r * out + n] = bias ? lanes[i] + bias[n] : lanes[i];
            }
        }
}

template <int ROWS>
void panel_rows(const float* x, int64_t in, const float* w, int64_t panel, int64_t chunk, const float* bias, float* y,
                int64_t out, int64_t first) {
    int64_t done = 0;
    for (; done + 4 * W <= panel; done += 4 * W)
        panel_part<ROWS, 4>(x, in, w + done, panel, chunk, bias, y, out, first + done);
    for (; done < panel; done += W)
        panel_part<ROWS, 1>(x, in, w + done, panel, chunk, bias, y, out, first + done);
}

}  // namespace

extern "C" {

// x: [num_rows][in]; w: [ceil(out / panel)][in][panel], panel a multiple of diptych_vector_floats(); y: [num_rows][out].
void diptych_packed_linear(
    const float* x, int64_t num_rows, int64_t in, const float* w, int64_t panel, int64_t chunk, const float* bias,
    float* y, int64_t out, int threads) {
    const int64_t num_panels = (out + panel - 1) / panel;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < num_panels; ++p) {
        const float* from = w + p * panel * in;
        int64_t row = 0;
        for (; row + 4 <= num_rows; row += 4)
            panel_rows<4>(x + row * in, in, from, panel, chunk, bias, y + row * out, out, p * panel);
        for (; row + 2 <= num_rows; row += 2)
            panel_rows<2>(x + row * in, in, from, panel, chunk, bias, y + row * out, out, p * panel);
        if (row < num_rows)
            panel_rows<1>(x + row * in, in, from, panel, chunk, bias, y + row * out, out, p * panel);
    }
}

int64_t diptych_vector_floats() { return W; }
}
