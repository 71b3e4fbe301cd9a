// A drawing becomes the image that a network takes, byte for byte as `qattrain predict` makes it of a picture of the
// same canvas: qattrain/data/pictures.py, written once more. Ink lies on plain paper here, so what is left out is what
// only photographs need: uneven light, transparency, and the image of the drawing with ink and paper exchanged.
//
//   prepare(grey, width, height, inputShape, handwriting) -> {image: Uint8Array or null, notes: [sentence, ...]}

const BOX_SIDE = 20, IMAGE_SIDE = 28;
const MIN_CONTRAST = 24; // of 255, between paper and ink: with less the canvas is empty
const PAPER_NOISE = 0.25; // of the strongest ink: anything fainter is paper
const EDGE = 0.9; // of a ring of pixels: so many of one kind make it part of a frame along the edge
const SPECK = 0.02; // of the ink of the largest shape: anything less is dust
const MAX_FRAMES = 3, FRAME_COVER = 0.7;

/**
 * grey: Uint8Array (height, width), any ink on any paper. inputShape: the network's, [1, H, W]. handwriting: whether it
 * was trained on images like MNIST's: then the drawing is cropped, scaled and centred like those, else only resized.
 * image is null if nothing is drawn; notes say what was done besides.
 */
function prepare(grey, width, height, inputShape, handwriting) {
  const nothing = { image: null, notes: ["nothing drawn"] };
  if (!handwriting) {
    if (grey.every((value) => value === grey[0])) return nothing;
    return { image: resizeBytes(grey, width, height, inputShape[2], inputShape[1]), notes: [] };
  }
  const notes = [];
  const whole = { pixels: new Float64Array(grey), width, height };
  const inside = withoutEdge(whole);
  if (inside !== whole) notes.push("a frame along the edge was cut off");
  const ink = distances(inside, median(ring(inside, 0)));
  if (largest(ink.pixels) < MIN_CONTRAST) return nothing;
  return { image: normalized(keepShapes(ink, notes)), notes };
}

function largest(values) {
  let most = -Infinity;
  for (let i = 0; i < values.length; i++) if (values[i] > most) most = values[i];
  return most;
}

function median(values) {
  const sorted = new Float64Array(values).sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** How far each pixel's grey is from `grey`. */
function distances({ pixels, width, height }, grey) {
  const found = new Float64Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) found[i] = Math.abs(pixels[i] - grey);
  return { pixels: found, width, height };
}

/** The row or column of pixels `depth` pixels from each edge; corners count twice. */
function ring({ pixels, width, height }, depth) {
  const wide = width - 2 * depth, high = height - 2 * depth, found = new Float64Array(2 * (wide + high));
  for (let i = 0; i < wide; i++) {
    found[i] = pixels[depth * width + depth + i];
    found[wide + i] = pixels[(height - 1 - depth) * width + depth + i];
  }
  for (let i = 0; i < high; i++) {
    found[2 * wide + i] = pixels[(depth + i) * width + depth];
    found[2 * wide + high + i] = pixels[(depth + i) * width + width - 1 - depth];
  }
  return found;
}

/** The picture inside a frame that runs along its edges, or the same object. */
function withoutEdge(picture) {
  const frame = median(ring(picture, 0)), away = distances(picture, frame);
  const near = Math.max(MIN_CONTRAST, PAPER_NOISE * largest(away.pixels));
  const share = (depth, isFar) => {
    const found = ring(away, depth);
    let count = 0;
    for (let i = 0; i < found.length; i++) if (found[i] >= near === isFar) count++;
    return count / found.length;
  };
  const deepest = Math.floor(Math.min(picture.width, picture.height) / 10);
  let cut = 1;
  while (cut <= deepest && share(cut, true) < EDGE) cut++;
  if (cut > deepest || share(0, false) < EDGE) return picture;
  const level = (depth) => median(ring(away, depth));
  while (cut < deepest && level(cut + 1) > level(cut) + 1) cut++;
  const inside = crop(picture, cut, cut, picture.width - cut, picture.height - cut);
  const isBlank = largest(distances(inside, median(ring(inside, 0))).pixels) < MIN_CONTRAST;
  return isBlank || Math.abs(median(inside.pixels) - frame) < near ? picture : inside;
}

function crop({ pixels, width }, left, top, right, bottom) {
  const wide = right - left, part = new Float64Array(wide * (bottom - top));
  for (let y = top; y < bottom; y++) part.set(pixels.subarray(y * width + left, y * width + right), (y - top) * wide);
  return { pixels: part, width: wide, height: bottom - top };
}

/** The ink of what may be the digit, 0 elsewhere, without frames around it and without specks; cropped to its box. */
function keepShapes(ink, notes) {
  const { labels, shapes } = findShapes(ink);
  const side = (shape) => Math.max(shape.right - shape.left, shape.bottom - shape.top);
  const largestFirst = shapes.map((_, index) => index).sort((a, b) => shapes[b].mass - shapes[a].mass || a - b);
  let framed = false;
  for (const index of largestFirst.slice(0, MAX_FRAMES)) {
    const frame = shapes[index];
    if (frame.mass === 0 || !isFrame(labels, ink.width, frame, index + 1)) continue;
    const inside = shapes.map((shape) => contains(frame, shape) && side(shape) < side(frame));
    const widest = largest(shapes.map((shape, i) => (inside[i] ? side(shape) : 0)));
    if (widest * 4 < Math.min(frame.right - frame.left, frame.bottom - frame.top)) continue;
    shapes.forEach((shape, i) => {
      if (!inside[i]) shape.mass = 0;
    });
    framed = true;
  }
  if (framed) notes.push("a frame around it was removed");
  const least = SPECK * largest(shapes.map((shape) => shape.mass));
  const kept = shapes.filter((shape) => shape.mass >= least);
  const specks = shapes.filter((shape) => shape.mass !== 0).length - kept.length;
  const number = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, ",");
  if (specks) notes.push(specks === 1 ? "1 speck was left out" : `${number(specks)} specks were left out`);
  const widest = largest(kept.map(side)), large = kept.filter((shape) => 2 * side(shape) >= widest).length;
  if (large > 1) {
    notes.push(`${number(large)} separate shapes are read as one digit; if they are several digits, crop them`);
  }
  const edge = (name, choose) => choose(...kept.map((shape) => shape[name]));
  const [left, top] = [edge("left", Math.min), edge("top", Math.min)];
  const box = crop(ink, left, top, edge("right", Math.max), edge("bottom", Math.max));
  for (let i = 0; i < box.pixels.length; i++) {
    const label = labels[(top + Math.floor(i / box.width)) * ink.width + left + (i % box.width)];
    if (label === 0 || shapes[label - 1].mass < least) box.pixels[i] = 0;
  }
  return box;
}

/** Strong ink connected over sides and corners: of each pixel its shape's number, or 0; of each shape mass and box. */
function findShapes({ pixels, width, height }) {
  const strong = PAPER_NOISE * largest(pixels), labels = new Int32Array(pixels.length), shapes = [], stack = [];
  for (let start = 0; start < pixels.length; start++) {
    if (labels[start] || pixels[start] < strong) continue;
    const shape = { mass: 0, left: width, right: 0, top: height, bottom: 0 };
    shapes.push(shape);
    labels[start] = shapes.length;
    stack.push(start);
    while (stack.length) {
      const place = stack.pop(), x = place % width, y = (place - x) / width;
      shape.mass += pixels[place];
      shape.left = Math.min(shape.left, x);
      shape.right = Math.max(shape.right, x + 1);
      shape.top = Math.min(shape.top, y);
      shape.bottom = Math.max(shape.bottom, y + 1);
      for (let i = Math.max(0, y - 1); i <= Math.min(height - 1, y + 1); i++) {
        for (let j = Math.max(0, x - 1); j <= Math.min(width - 1, x + 1); j++) {
          const next = i * width + j;
          if (labels[next] || pixels[next] < strong) continue;
          labels[next] = shapes.length;
          stack.push(next);
        }
      }
    }
  }
  return { labels, shapes };
}

/** Nothing in the middle two thirds by two thirds of its box, and in its outer sixth, seven tenths of each side. */
function isFrame(labels, width, box, label) {
  const high = box.bottom - box.top, wide = box.right - box.left;
  const [band, edge] = [Math.floor(high / 6), Math.floor(wide / 6)];
  if (!band || !edge) return false;
  const covered = [new Set(), new Set(), new Set(), new Set()];
  for (let y = 0; y < high; y++) {
    for (let x = 0; x < wide; x++) {
      if (labels[(box.top + y) * width + box.left + x] !== label) continue;
      if (y >= band && y < high - band && x >= edge && x < wide - edge) return false;
      if (y < band) covered[0].add(x);
      if (y >= high - band) covered[1].add(x);
      if (x < edge) covered[2].add(y);
      if (x >= wide - edge) covered[3].add(y);
    }
  }
  return covered.every((places, i) => places.size / (i < 2 ? wide : high) >= FRAME_COVER);
}

function contains(outer, inner) {
  const beside = outer.left <= inner.left && inner.right <= outer.right;
  return beside && outer.top <= inner.top && inner.bottom <= outer.bottom;
}

/** The ink in its box, 0 on paper -> Uint8Array 28x28: scaled and centred like MNIST's images. */
function normalized(box) {
  const most = largest(box.pixels), scale = BOX_SIDE / Math.max(box.width, box.height);
  const [wide, high] = [box.width, box.height].map((side) => Math.max(1, roundHalfEven(side * scale)));
  const small = resizeFloats(box.pixels.map((value) => 255 * (value / most)), box.width, box.height, wide, high);
  const clipped = Float64Array.from(small, (value) => Math.min(Math.max(value, 0), 255));
  const stretch = 255 / largest(clipped), values = clipped.map((value) => value * stretch);
  const rows = Array.from({ length: high }, (_, y) => sumPairwise(values.subarray(y * wide, (y + 1) * wide)));
  const columns = wide === 1 ? [sumPairwise(values)] : new Array(wide).fill(0);
  if (wide > 1) values.forEach((value, place) => (columns[place % wide] += value));
  const up = offset(rows), across = offset(columns), image = new Uint8Array(IMAGE_SIDE * IMAGE_SIDE);
  values.forEach((value, place) => {
    image[(up + Math.floor(place / wide)) * IMAGE_SIDE + across + (place % wide)] = Math.floor(value + 0.5);
  });
  return image;
}

/** Where the box begins so that its centre of mass is as near to pixel 14 as the whole box allows. */
function offset(mass) {
  const centre = sumPairwise(mass.map((value, place) => place * value)) / sumPairwise(mass);
  return Math.min(Math.max(roundHalfEven(IMAGE_SIDE / 2 - centre), 0), IMAGE_SIDE - mass.length);
}

function roundHalfEven(value) {
  const whole = Math.floor(value), rest = value - whole;
  return rest === 0.5 ? whole + (whole % 2 === 0 ? 0 : 1) : whole + (rest > 0.5 ? 1 : 0);
}

/** NumPy's order of adding up to 128 numbers: where a centre of mass lies between two pixels, the last bit decides. */
function sumPairwise(values) {
  const partial = [0, 0, 0, 0, 0, 0, 0, 0], whole = values.length < 8 ? 0 : values.length - (values.length % 8);
  for (let i = 0; i < whole; i++) partial[i % 8] += values[i];
  const [a, b, c, d, e, f, g, h] = partial;
  let sum = a + b + (c + d) + (e + f + (g + h));
  for (let i = whole; i < values.length; i++) sum += values[i];
  return sum;
}

/** Pillow's bilinear filter along one axis: of each of `after` pixels the first it averages over, and their weights. */
function filterWeights(before, after) {
  const scale = before / after, support = Math.max(scale, 1);
  return Array.from({ length: after }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), before);
    const weights = [];
    let total = 0;
    for (let i = first; i < last; i++) {
      const weight = Math.max(1 - Math.abs((i - centre + 0.5) * (1 / support)), 0);
      weights.push(weight);
      total += weight;
    }
    return { first, weights: weights.map((weight) => (total === 0 ? weight : weight / total)) };
  });
}

/** Filters rows, then columns; `made` turns a sum into what is stored. A side that stays as it is costs nothing. */
function resize(pixels, width, height, wide, high, weigh, made) {
  let across = pixels;
  if (wide !== width) {
    across = new pixels.constructor(wide * height);
    filterWeights(width, wide).map(weigh).forEach(({ first, weights }, x) => {
      for (let y = 0; y < height; y++) {
        let sum = 0;
        for (let i = 0; i < weights.length; i++) sum += pixels[y * width + first + i] * weights[i];
        across[y * wide + x] = made(sum);
      }
    });
  }
  if (high === height) return across;
  const down = new pixels.constructor(wide * high);
  filterWeights(height, high).map(weigh).forEach(({ first, weights }, y) => {
    for (let x = 0; x < wide; x++) {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += across[(first + i) * wide + x] * weights[i];
      down[y * wide + x] = made(sum);
    }
  });
  return down;
}

/** As Pillow resizes pictures of floats: stored as float32, added up as double. */
function resizeFloats(pixels, width, height, wide, high) {
  return resize(new Float32Array(pixels), width, height, wide, high, (filter) => filter, (sum) => sum);
}

/** As Pillow resizes bytes: weights are whole numbers of 2^-22. */
function resizeBytes(pixels, width, height, wide, high) {
  const whole = (weight) => Math.trunc(0.5 + weight * 2 ** 22);
  const weigh = ({ first, weights }) => ({ first, weights: weights.map(whole) });
  const made = (sum) => Math.min(Math.max(Math.floor((sum + 2 ** 21) / 2 ** 22), 0), 255);
  return resize(pixels, width, height, wide, high, weigh, made);
}
