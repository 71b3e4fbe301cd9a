{#- The frame of model.c, a jinja2 template. The kernels are plain C in <layout>.c, and `struct layer`, which they share
    with the tables, in <layout>.h. The words for real numbers, for allocating memory and for printing must not appear
    in any of them. -#}
/* model.c: a LeNet made of integers, written by qattrain. C99; needs nothing but the compiler.
 *
 * 784 grey pixels go in, one integer per class comes out, and the largest one names the class. In between, each layer
 * multiplies small integers ("codes") and adds them up in 32 bits; a multiplier and a shift per channel turn each sum
 * into a code of the next layer. Every number equals that of the trained network: no rounding is left over.
 *
 *     sum  = inputs x weights + bias                             32 bits
 *     code = (sum * multiplier + 2^(shift - 1)) >> shift         64 bits; then limited to 0 .. largest
 *
 *     image 28x28   conv 5x5 and 2x2 maximum -> 12x12x{{ widths[0] }}   conv 5x5 and 2x2 maximum -> 4x4x{{ widths[1] }}
 *                   fully connected -> {{ widths[2] }}   fully connected -> {{ widths[3] }} sums, the logits
 *
 * Maps are stored row by row, with all channels of a pixel side by side: (row, column, channel). A convolution computes
 * the four sums of a 2x2 window and keeps only the largest, so the map before pooling, four times as large, is never
 * stored.
 *
{% if layout == "packed" %}
 * Layout "packed", the smallest: weights of b bits lie in a stream of bits without gaps. Number i, 0 .. 2^b - 1, takes
 * the bits i*b .. i*b + b - 1, its lowest first; bit j of the stream is bit j % 8, counted from the lowest, of byte
 * j / 8. The weight is lowest + step * number. One row, the weights of one output channel, is unpacked at a time.
{% else %}
 * Layout "int8", the fastest: a weight is a byte. A row, the weights of one output channel, is padded with zeros to a
 * multiple of {{ align }} bytes, and a convolution first copies the pixels under its kernel side by side: a sum is then
 * one plain loop over two arrays, which compilers turn into vector instructions. Whatever lies behind the inputs is
 * multiplied by these zeros. Rows of zeros pad a layer to the number of rows that are multiplied together.
 *
 * For an x86 processor with AVX2 (-march=native) the two innermost functions are written in its vector instructions,
 * several times faster than what compilers generate; -DQATTRAIN_PORTABLE leaves them out. The logits are the same.
{% endif %}
 */
#include "model.h"

#define KERNEL {{ kernel }} /* rows and columns of a convolution's kernel */

/* The smallest types that hold the numbers below. */
{% if layout == "packed" %}
typedef {{ weight_type }} weight_t;
{% else %}
#define TWO_PRODUCTS_FIT_16_BITS {{ products_fit }} /* the sum of two products of an input and a weight */
{% endif %}
typedef {{ bias_type }} bias_t;
typedef {{ multiplier_type }} multiplier_t;

{% include layout ~ ".h" %}
{% for layer, arrays, fields in tables %}

/* {{ layer.name }}: {{ layer.codes.shape | join(" x ") }} weights, {{ layer.quantizer }}, {{ layer.bits }} bits{{
   ", zero point %d" | format(layer.zero_point) if layer.zero_point }} */
{% for field, (type, numbers) in arrays.items() %}
static const {{ type }} {{ layer.name }}_{{ field }}[{{ numbers | length }}] = {
{{ numbers | wrap }}
};
{% endfor %}
static const struct layer {{ layer.name }} = {
{% for field in arrays %}
    .{{ field }} = {{ layer.name }}_{{ field }},
{% endfor %}
    .inputs = {{ layer.codes[0].size }},
    .outputs = {{ layer.codes | length }},
{% for field, value in fields.items() %}
    .{{ field }} = {{ value }},
{% endfor %}
};
{% endfor %}

/* All memory that is written to. Layers alternately read `even` and write `odd`, and the reverse. */
static struct {
{% for type, name, count, note in arena.fields %}
    {{ "%-28s" | format("%s %s[%d];" | format(type, name, count)) }}/* {{ note }} */
{% endfor %}
} arena{{ " ALIGNED" if layout == "int8" }};

/* Fails to compile if the size of the arena is not what model.h states. */
typedef char arena_has_the_stated_size[sizeof arena == QATTRAIN_ARENA_BYTES ? 1 : -1];

{% filter replace("CONV_ROWS", conv_rows) | replace("LINEAR_ROWS", linear_rows) %}
{% include layout ~ ".c" %}
{% endfilter %}

int qattrain_predict(const uint8_t image[784], int32_t logits[QATTRAIN_CLASSES]) {
    int best = 0, i;
    convolve(&conv1, image, 28, 1, arena.even);                       /* -> 12x12 */
    convolve(&conv2, arena.even, 12, conv1.outputs, arena.odd);       /* -> 4x4 */
    connect(&fc1, arena.odd, arena.even, 0);
    connect(&fc2, arena.even, 0, logits);
    for (i = 1; i < QATTRAIN_CLASSES; i++) {
        if (logits[i] > logits[best]) best = i;                       /* the lowest index where several are equal */
    }
    return best;
}
