/* The kernels of kernels.py in C, one pass over memory each. Compiled at the first use, for this processor, by native.py.

   VALUE is what layers multiply: bfloat16 with -DBF16, else float. Every tensor is dense, in the order its caller says.
   Sums of threads are added up in the order of the threads: the same numbers at the same number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
int omp_get_thread_num(void);
int omp_get_num_threads(void);
#define PARALLEL(threads) _Pragma("omp parallel num_threads((int)threads)")
#else
#define PARALLEL(threads)
#endif
#define SIMD _Pragma("omp simd")
#define SIMD_SUM(sum) _Pragma("omp simd reduction(+ : sum)") /* may add in another order */

#define MIN_SCALE 9.5367431640625e-07f /* 2^-20 */
#define MAX_BIAS_CODE 4194303.0f       /* 2^22 - 1 */

#ifdef BF16
typedef uint16_t VALUE;
static inline float load(VALUE value) {
    uint32_t bits = (uint32_t)value << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}
static inline VALUE store(float number) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &number, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return number == number ? (VALUE)rounded : 0x7fc0;
}
#else
typedef float VALUE;
static inline float load(VALUE value) { return value; }
static inline VALUE store(float number) { return number; }
#endif

static inline float clip(float v, float low, float high) { return v < low ? low : v > high ? high : v; }

/* The part first..last of `count` things that falls to this thread of a parallel region; returns its number. */
static int64_t share(int64_t count, int64_t *first, int64_t *last) {
    int64_t thread = 0, threads = 1;
#ifdef _OPENMP
    thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
    *first = count * thread / threads;
    *last = count * (thread + 1) / threads;
    return thread;
}

/* codes[r][i] = clip(floor(x / s + z + 1/2), qmin, qmax). A row has its own step, or (per_row 0) all share the first. */
void grid_codes(const float *x, int64_t rows, int64_t columns, const float *step, int64_t per_row, float zero_point, float qmin,
                float qmax, VALUE *codes, int64_t threads) {
    PARALLEL(threads) {
        int64_t first, last;
        share(rows, &first, &last);
        for (int64_t r = first; r < last; r++) {
            float s = step[per_row ? r : 0];
            s = s < MIN_SCALE ? MIN_SCALE : s;
            SIMD
            for (int64_t i = r * columns; i < (r + 1) * columns; i++)
                codes[i] = store(clip(floorf(x[i] / s + zero_point + 0.5f), qmin, qmax));
        }
    }
}

/* g_x, and the gradient of every step. clipped: the surrogate, else the identity. sums: room for a number a row. */
void learned_step_gradients(const VALUE *grad_codes, const float *x, int64_t rows, int64_t columns, const float *step,
                            int64_t per_row, float qmin, float qmax, float gradient_scale, int64_t clipped, int64_t rectify,
                            float *grad_x, float *grad_step, float *sums, int64_t threads) {
    PARALLEL(threads) {
        int64_t first, last;
        share(rows, &first, &last);
        for (int64_t r = first; r < last; r++) {
            float s = step[per_row ? r : 0], sum = 0;
            s = s < MIN_SCALE ? MIN_SCALE : s;
            float inverse = 1 / s;
            SIMD_SUM(sum)
            for (int64_t i = r * columns; i < (r + 1) * columns; i++) {
                float g = load(grad_codes[i]), v = x[i] / s;
                int passes = ((clipped == 0) | ((v >= qmin) & (v <= qmax))) & ((rectify == 0) | (x[i] > 0));
                float grad_v = passes ? g : 0;
                sum += g * clip(floorf(v + 0.5f), qmin, qmax) - grad_v * v;
                grad_x[i] = grad_v * inverse;
            }
            sums[r] = sum * inverse;
        }
    }
    if (!per_row) grad_step[0] = 0;
    for (int64_t r = 0; r < rows; r++)
        if (per_row) grad_step[r] = sums[r] * gradient_scale;
        else grad_step[0] += sums[r] * gradient_scale;
}

/* g_x, and the gradient of the level at which all rows are clipped, qmax steps. sums: room for a number a row. */
void learned_clip_gradients(const VALUE *grad_codes, const float *x, int64_t rows, int64_t columns, const float *step,
                            float qmax, int64_t clipped, int64_t rectify, float *grad_x, float *grad_alpha, float *sums,
                            int64_t threads) {
    float s = *step < MIN_SCALE ? MIN_SCALE : *step, inverse = 1 / s;
    PARALLEL(threads) {
        int64_t first, last;
        share(rows, &first, &last);
        for (int64_t r = first; r < last; r++) {
            float sum = 0;
            SIMD_SUM(sum)
            for (int64_t i = r * columns; i < (r + 1) * columns; i++) {
                float g = load(grad_codes[i]), v = x[i] / s;
                int passes = ((clipped == 0) | ((v >= 0) & (v <= qmax))) & ((rectify == 0) | (x[i] > 0));
                sum += v >= qmax ? g : 0;
                grad_x[i] = passes ? g * inverse : 0;
            }
            sums[r] = sum * inverse;
        }
    }
    *grad_alpha = 0;
    for (int64_t r = 0; r < rows; r++) *grad_alpha += sums[r];
}

/* g_x = surrogate(g_q, x / unit + offset) / scale; bounds[2 r], bounds[2 r + 1]: the range of the staircase. */
void staircase_gradient(const VALUE *grad_codes, const float *x, int64_t rows, int64_t columns, const float *scale,
                        const float *unit, float offset, const float *bounds, int64_t per_row, int64_t clipped, int64_t rectify,
                        float *grad_x, int64_t threads) {
    PARALLEL(threads) {
        int64_t first, last;
        share(rows, &first, &last);
        for (int64_t r = first; r < last; r++) {
            int64_t own = per_row ? r : 0;
            float inverse = 1 / scale[own], u = unit[own], low = bounds[2 * own], high = bounds[2 * own + 1];
            SIMD
            for (int64_t i = r * columns; i < (r + 1) * columns; i++) {
                float v = x[i] / u + offset;
                int passes = ((clipped == 0) | ((v >= low) & (v <= high))) & ((rectify == 0) | (x[i] > 0));
                grad_x[i] = passes ? load(grad_codes[i]) * inverse : 0;
            }
        }
    }
}

/* Channels are few: blocks of a fixed length, the last of them moved back to end with the channels, are all vectors and
   no rest. What a block computes twice is the same both times. */
#define FOR_BLOCKS(BODY)                                                                       \
    if (channels >= 16)                                                                        \
        for (int64_t at = 0; at < channels; at += 16) BODY(at + 16 > channels ? channels - 16 : at, 16) \
    else if (channels >= 8)                                                                    \
        for (int64_t at = 0; at < channels; at += 8) BODY(at + 8 > channels ? channels - 8 : at, 8)     \
    else                                                                                       \
        for (int64_t at = 0; at < channels; at++) BODY(at, 1)

/* The largest of a 2 x 2 window, channel by channel, and which it is, the first of equals: 0 1 above, 2 3 below. */
static inline void window_maximum(const VALUE *restrict above, const VALUE *restrict below, int64_t channels, int64_t from,
                                  const int64_t count, float *restrict best, uint8_t *restrict winner) {
    float first[16], second[16];
    int32_t which[16];
    for (int64_t k = 0; k < count; k++) {
        int64_t c = from + k;
        float a = load(above[c]), b = load(above[c + channels]), d = load(below[c]), e = load(below[c + channels]);
        int32_t right = b > a, right_below = 2 + (e > d);
        first[k] = b > a ? b : a, second[k] = e > d ? e : d;
        which[k] = second[k] > first[k] ? right_below : right;
    }
    for (int64_t k = 0; k < count; k++) best[from + k] = second[k] > first[k] ? second[k] : first[k];
    for (int64_t k = 0; k < count; k++) winner[from + k] = (uint8_t)which[k];
}

/* b_q, the bias on the grid of the accumulators. */
static inline float bias_code(float bias, float scale) {
    return clip(floorf(bias / scale + 0.5f), -MAX_BIAS_CODE, MAX_BIAS_CODE);
}

/* y = (largest of each window of acc + bias) * scale. acc: (images, height, width, channels); y and winners: (images,
   height / pool, width / pool, channels); pool 1 (winners untouched) or 2. bias: a number a channel, or NULL; scale: the
   same, or one number (`shared`), or NULL for a float layer. y is float, or VALUE in a float layer. room: for threads + 2
   rows of floats. */
void rescale(const VALUE *acc, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t pool,
             const float *bias, const float *scale, int64_t shared, int64_t on_grid, void *y, uint8_t *winners, float *room,
             int64_t threads) {
    int64_t rows = height / pool, length = width / pool * channels;
    float *restrict addends = room, *restrict factors = room + length;
    for (int64_t i = 0; i < length; i++) {
        int64_t c = i % channels;
        factors[i] = scale ? scale[shared ? 0 : c] : 1;
        addends[i] = !bias ? 0 : !scale ? load(store(bias[c])) : on_grid ? bias_code(bias[c], factors[i]) : bias[c] / factors[i];
    }
    PARALLEL(threads) {
        int64_t first, last;
        float *restrict line = room + (2 + share(images * rows, &first, &last)) * length;
        for (int64_t row = first; row < last; row++) {
            const VALUE *restrict above = acc + row * pool * width * channels, *below = above + width * channels;
            float *restrict real = (float *)y + row * length;
            VALUE *restrict narrow = (VALUE *)y + row * length;
            if (pool == 2)
                for (int64_t i = 0; i < length; i += channels) {
#define BODY(FROM, COUNT) \
    window_maximum(above + 2 * i, below + 2 * i, channels, FROM, COUNT, line + i, winners + row * length + i);
                    FOR_BLOCKS(BODY)
#undef BODY
                }
            else
                for (int64_t i = 0; i < length; i++) line[i] = load(above[i]);
            if (scale)
                for (int64_t i = 0; i < length; i++) real[i] = (line[i] + addends[i]) * factors[i];
            else
                for (int64_t i = 0; i < length; i++) narrow[i] = store(line[i] + addends[i]);
        }
    }
}

/* A gradient into the 2 x 2 window it comes from: to the element that won, 0 to the others. */
static inline void into_window(const VALUE *restrict grad, const uint8_t *restrict winner, int64_t channels, int64_t from,
                               const int64_t count, VALUE *restrict above, VALUE *restrict below) {
    for (int64_t k = 0; k < count; k++) {
        int64_t c = from + k;
        VALUE g = grad[c], w = winner[c];
        above[c] = w == 0 ? g : 0;
        above[c + channels] = w == 1 ? g : 0;
        below[c] = w == 2 ? g : 0;
        below[c + channels] = w == 3 ? g : 0;
    }
}

/* g_acc and g_bias (or NULL) of `rescale`. grad_y: float, or VALUE in a float layer. lines: room for a row of VALUEs for
   every thread; room: for threads + 1 rows of floats, zeroed. */
void rescale_gradients(const void *grad_y, const uint8_t *winners, int64_t images, int64_t height, int64_t width,
                       int64_t channels, int64_t pool, const float *bias, const float *scale, int64_t shared, int64_t on_grid,
                       VALUE *grad_acc, float *grad_bias, VALUE *lines, float *room, int64_t threads) {
    int64_t rows = height / pool, length = width / pool * channels;
    float *restrict factors = room;
    for (int64_t i = 0; i < length; i++) factors[i] = scale ? scale[shared ? 0 : i % channels] : 1;
    PARALLEL(threads) {
        int64_t first, last, thread = share(images * rows, &first, &last);
        float *restrict sum = room + (1 + thread) * length;
        VALUE *own_line = lines + thread * length;
        for (int64_t row = first; row < last; row++) {
            VALUE *above = grad_acc + row * pool * width * channels, *below = above + width * channels;
            VALUE *restrict line = pool == 2 ? own_line : above;
            const float *restrict real = (const float *)grad_y + row * length;
            const VALUE *restrict narrow = (const VALUE *)grad_y + row * length;
            if (scale)
                for (int64_t i = 0; i < length; i++) sum[i] += real[i], line[i] = store(real[i] * factors[i]);
            else
                for (int64_t i = 0; i < length; i++) sum[i] += load(narrow[i]), line[i] = narrow[i];
            if (pool == 2)
                for (int64_t i = 0; i < length; i += channels) {
#define BODY(FROM, COUNT) \
    into_window(line + i, winners + row * length + i, channels, FROM, COUNT, above + 2 * i, below + 2 * i);
                    FOR_BLOCKS(BODY)
#undef BODY
                }
        }
    }
    for (int64_t c = 0; grad_bias && c < channels; c++) {
        float sum = 0, code = scale && on_grid ? fabsf(bias[c] / factors[c]) : 0;
        for (int64_t i = c; i < threads * length; i += channels) sum += room[length + i];
        grad_bias[c] = code <= MAX_BIAS_CODE ? sum : 0; /* a bias held at the end of its range does not learn */
    }
}
