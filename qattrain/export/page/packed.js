"use strict";
// Reads a packed file, version 2, which qattrain/integer/packed.py describes: readPacked(bytes) -> network, which is
// {name, dataset, classNames, testAccuracy, inputShape, logitScale, bytes, totalBytes, macs, layers}. Layers say what
// the file says of them, in its words, and what follows from that. The digest is not checked: Python did.

const IMAGE_MAX = 255;
const INT32_MAX = 2147483647;
const LARGEST_MAP = 2 ** 24;
const RANGES = { biases: [-INT32_MAX, INT32_MAX], multipliers: [0, INT32_MAX], shifts: [1, 62] };
const TYPES = {
  U8: [1, "getUint8"], U16: [2, "getUint16"], U32: [4, "getUint32"],
  I8: [1, "getInt8"], I16: [2, "getInt16"], I32: [4, "getInt32"],
};

function need(fits, problem) {
  if (!fits) throw new Error(`this packed file is damaged: ${problem}`);
}

/** bytes: Uint8Array, a whole packed file -> network. Throws Error with one line if it is none, or inconsistent. */
function readPacked(bytes) {
  const { header, tensors } = readTensors(bytes);
  need(header.format_version === 2, `format version ${header.format_version} instead of 2`);
  const layers = [], at = { weights: 0, biases: 0, multipliers: 0, shifts: 0 };
  const take = (name, count) => {
    const values = tensors[name];
    need(values !== undefined && at[name] + count <= values.length, `too few ${name}`);
    at[name] += count;
    return values.subarray(at[name] - count, at[name]);
  };
  const carried = { zero_point: 0, once: [] };
  let inputs = header.input_shape, inputMax = IMAGE_MAX;
  need(Array.isArray(inputs) && inputs.length === 3 && inputs.every((n) => n >= 1), `input shape ${inputs}`);
  header.layers.forEach((entry, index) => {
    for (const name of ["bits", "quantizer", "lowest", "zero_point", "activation_bits", "once"]) {
      if (entry[name] !== undefined && entry[name] !== null) carried[name] = entry[name];
    }
    const last = index === header.layers.length - 1;
    const layer = readLayer(entry, carried, inputs, inputMax, last, take);
    layers.push(layer);
    inputs = layer.outputShape;
    inputMax = last ? 0 : layer.qmax;
  });
  need(layers.length > 0 && layers[layers.length - 1].kind === "linear", "its last layer does not give logits");
  for (const name of Object.keys(tensors)) need(at[name] === tensors[name].length, `too many ${name}`);
  const classes = layers[layers.length - 1].shape[0];
  const classNames = header.class_names || Array.from({ length: classes }, (_, i) => String(i));
  need(classNames.length === classes, `${classes} logits for ${classNames.length} classes`);
  const total = (name) => layers.reduce((sum, layer) => sum + layer[name], 0);
  return {
    name: header.name,
    dataset: header.dataset,
    classNames,
    testAccuracy: header.test_accuracy === undefined ? null : header.test_accuracy,
    inputShape: header.input_shape,
    logitScale: header.logit_scale,
    bytes: total("weightBytes"),
    totalBytes: total("totalBytes"),
    macs: total("macs"),
    layers,
  };
}

/** A safetensors file: its metadata, and its tensors as typed arrays. */
function readTensors(bytes) {
  need(bytes.length > 8, "it is too short");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  need(view.getUint32(4, true) === 0 && 8 + length <= bytes.length, "it is too short");
  let entries, header;
  try {
    entries = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    header = JSON.parse(entries.__metadata__.qattrain);
  } catch {
    need(false, "its header cannot be read");
  }
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    if (name === "__metadata__") continue;
    need(name === "weights" || name in RANGES, `a tensor ${name}`);
    need(dtype in TYPES && shape.length === 1, `${name} has type ${dtype}`);
    const [size, getter] = TYPES[dtype];
    const [start, stop] = [8 + length + offsets[0], 8 + length + offsets[1]];
    need(stop - start === size * shape[0] && start >= 8 + length && stop <= bytes.length, `${name} is cut off`);
    if (name === "weights") {
      need(dtype === "U8", `weights have type ${dtype}`);
      tensors[name] = bytes.subarray(start, stop);
      continue;
    }
    const [low, high] = RANGES[name];
    tensors[name] = new Int32Array(shape[0]);
    for (let i = 0; i < shape[0]; i++) {
      const value = view[getter](start + i * size, true);
      need(low <= value && value <= high, `${name} has ${value}; allowed: ${low} to ${high}`);
      tensors[name][i] = value;
    }
  }
  return { header, tensors };
}

const pair = (value, missing) => (Array.isArray(value) ? value : [value ?? missing, value ?? missing]);
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** One layer: what the file says of it, what follows from that, and its weights laid out for `run`. */
function readLayer(entry, carried, inputs, inputMax, last, take) {
  const { name, shape = null } = entry;
  const kind = shape === null ? "average" : shape.length === 4 ? "conv" : "linear";
  const outputs = shape === null ? inputs[0] : shape[0];
  const layer = {
    name, kind, shape, inputShape: inputs, inputMax,
    bits: null, quantizer: null, lowest: null, highest: null, step: null, zeroPoint: 0, codes: null, bias: null,
    multipliers: null, shifts: null, activationBits: null, qmax: null,
    stride: pair(entry.stride, 1), padding: pair(entry.padding, 0),
    groups: entry.groups === undefined ? 1 : entry.groups, pool: entry.pool === undefined ? 1 : entry.pool,
    pixels: entry.pixels === undefined ? null : entry.pixels,
  };
  const fits = kind !== "average" || (!last && inputs[1] * inputs[2] === layer.pixels);
  need(fits, `${name} averages ${layer.pixels} pixels`);
  placeLayer(layer, outputs);
  need(product(layer.mapShape) <= LARGEST_MAP, `${name} gives a map of ${layer.mapShape}`);
  const column = (values, count) => {
    const once = kind === "average" || carried.once.includes(values);
    const found = take(values, once ? 1 : count);
    return once ? new Int32Array(count).fill(found[0]) : Int32Array.from(found);
  };
  if (kind !== "average") {
    const { bits, lowest } = carried;
    need(bits >= 1 && bits <= 8 && lowest <= 0 && lowest >= -255, `${name} has ${bits} bits from ${lowest}`);
    Object.assign(layer, { bits, lowest, quantizer: carried.quantizer, zeroPoint: carried.zero_point });
    layer.step = lowest === 1 - 2 ** bits ? 2 : 1;
    const symmetric = layer.step === 2 || lowest === 1 - 2 ** (bits - 1);
    layer.highest = symmetric ? -lowest : lowest + 2 ** bits - 1;
    layer.codes = unpackCodes(take("weights", Math.ceil((product(shape) * bits) / 8)), layer);
    layer.bias = column("biases", outputs);
  }
  if (!last) {
    const bits = carried.activation_bits;
    need(bits >= 1 && bits <= 8, `${name} gives codes of ${bits} bits`);
    layer.activationBits = bits;
    layer.qmax = 2 ** bits - 1;
    layer.multipliers = column("multipliers", outputs);
    layer.shifts = Uint8Array.from(column("shifts", outputs));
  }
  countLayer(layer, outputs, last);
  layer.fast = prepareLayer(layer, outputs);
  return layer;
}

/** Shapes: of all sums, and of the outputs after pooling. */
function placeLayer(layer, outputs) {
  const { name, kind, shape, inputShape: inputs, stride, padding, groups, pool } = layer;
  layer.mapShape = [outputs, 1, 1];
  if (kind === "linear") need(shape[1] === product(inputs), `${name} takes ${shape[1]} inputs, not ${product(inputs)}`);
  if (kind === "conv") {
    need(shape[1] * groups === inputs[0] && outputs % groups === 0, `${name} does not fit ${inputs[0]} channels`);
    const side = (axis) => Math.floor((inputs[axis] + 2 * padding[axis - 1] - shape[axis + 1]) / stride[axis - 1]) + 1;
    layer.mapShape = [outputs, side(1), side(2)];
    need(Math.min(side(1), side(2)) >= pool, `${name} does not fit a map of ${inputs[1]}x${inputs[2]}`);
  }
  const [, height, width] = layer.mapShape;
  layer.outputShape = [outputs, Math.floor(height / pool), Math.floor(width / pool)];
}

/** How large its sums can become, the register that takes, and what it costs, as `qattrain inspect` counts. */
function countLayer(layer, outputs, last) {
  layer.macs = layer.weightBytes = 0;
  if (layer.kind === "average") {
    layer.accumulatorBound = layer.pixels * layer.inputMax;
    layer.totalBytes = 5;
  } else {
    const row = layer.codes.length / outputs;
    layer.accumulatorBound = 0;
    for (let d = 0; d < outputs; d++) {
      let weights = 0;
      for (let i = d * row; i < (d + 1) * row; i++) weights += Math.abs(layer.codes[i] - layer.zeroPoint);
      const bound = weights * layer.inputMax + Math.abs(layer.bias[d]);
      layer.accumulatorBound = Math.max(layer.accumulatorBound, bound);
    }
    layer.macs = layer.codes.length * layer.mapShape[1] * layer.mapShape[2];
    layer.weightBytes = Math.ceil((layer.codes.length * layer.bits) / 8);
    layer.totalBytes = layer.weightBytes + outputs * (last ? 4 : 9);
  }
  need(layer.accumulatorBound <= INT32_MAX, `a sum of ${layer.name} is beyond int32`);
  layer.registerBits = Math.ceil(Math.log2(layer.accumulatorBound + 1)) + 1;
}

/** The codes of a layer's weights, in the order of its shape: Int16Array. */
function unpackCodes(packed, { name, shape, bits, lowest, step, highest }) {
  const codes = new Int16Array(product(shape)), mask = 2 ** bits - 1;
  for (let i = 0, bit = 0; i < codes.length; i++, bit += bits) {
    const byte = bit >> 3;
    const index = ((packed[byte] | (packed[byte + 1] << 8)) >> (bit & 7)) & mask;
    codes[i] = lowest + step * index;
    need(codes[i] <= highest, `${name} has weights beyond ${highest}`);
  }
  return codes;
}
