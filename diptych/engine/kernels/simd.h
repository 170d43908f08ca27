// Vectors of the widest kind that the target has, through compiler extensions: W floats (16 with AVX-512, 8 with AVX,
// otherwise 4: SSE, NEON, or plain code where there is neither).
//
// Contraction is off (see build.py), so only `fma` below fuses, and it does so wherever it is called: what a number
// becomes does not depend on how the compiler unrolled the loop around it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));

static inline vf load(const float* from) {
    vf value;
    std::memcpy(&value, from, sizeof value);  // unaligned
    return value;
}

static inline void store(float* to, vf value) { std::memcpy(to, &value, sizeof value); }

static inline vf fill(float value) { return value - vf{}; }

static inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// Fixed order: pairs of lanes half a vector apart, then a quarter, ...
static inline float sum_lanes(vf value) {
    float lanes[W];
    store(lanes, value);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

static inline float max_lanes(vf value) {
    float lanes[W];
    store(lanes, value);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lanes[i] = lanes[i + half] > lanes[i] ? lanes[i + half] : lanes[i];
    return lanes[0];
}

// e^x, after Cephes' expf: about 1 unit in the last place for -87.3 < x < 88; 0 below, e^88 above; NaN stays NaN.
static inline vf exp(vf x) {
    const vf lowest = fill(-87.3f), highest = fill(88.0f), magic = fill(12582912.0f);  // 1.5 * 2^23: rounds to integer
    vf clamped = x < lowest ? lowest : x;
    clamped = clamped > highest ? highest : clamped;
    const vf shifted = fma(clamped, fill(1.44269504f), magic);
    const vf n = shifted - magic;
    vf r = fma(n, fill(-0.693359375f), clamped);
    r = fma(n, fill(2.12194440e-4f), r);
    vf p = fill(1.9875691500e-4f);
    p = fma(p, r, fill(1.3981999507e-3f));
    p = fma(p, r, fill(8.3334519073e-3f));
    p = fma(p, r, fill(4.1665795894e-2f));
    p = fma(p, r, fill(1.6666665459e-1f));
    p = fma(p, r, fill(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    const vi power = ((vi)shifted - (vi)magic + 127) << 23;
    return x < lowest ? vf{} : p * (vf)power;
}
