"use strict";
// The inside of one network: a line and its maps of codes for every layer, from the picture to the logits.
// Stage 0 is the picture, stage i + 1 is what layer i gives.

/** What a layer does, in a few words. */
function deed(layer) {
  if (layer.kind === "average") return `the average of each ${layer.inputShape[1]}\u00d7${layer.inputShape[2]} map`;
  if (layer.kind === "linear") return `each a sum over all ${say(layer.shape[1])} inputs`;
  const [outputs, inGroup, rows, columns] = layer.shape, maps = layer.inputShape[0];
  const words = [`${rows}\u00d7${columns} kernels`];
  if (inGroup === 1 && maps > 1 && outputs === maps) words[0] += ", each on one map";
  else if (layer.groups > 1) words.push(`in ${layer.groups} groups`);
  if (layer.stride[0] * layer.stride[1] > 1) words.push(`stride ${layer.stride[0] === layer.stride[1] ? layer.stride[0] : layer.stride.join("\u00d7")}`);
  if (layer.pool > 1) words.push(`then the largest of ${layer.pool}\u00d7${layer.pool}`);
  return words.join(", ");
}

const sizeOf = ([channels, rows, columns]) => (rows * columns === 1 ? `${say(channels)} numbers` : `${say(channels)} map${channels === 1 ? "" : "s"} of ${rows}\u00d7${columns}`);

/** "map 3, row 1, column 2", counted from 0. */
function placeName([channels, rows, columns], index) {
  const channel = Math.floor(index / (rows * columns)), inside = index % (rows * columns);
  if (rows * columns === 1) return `number ${channel}`;
  return `${channels > 1 ? `map ${channel}, ` : ""}row ${Math.floor(inside / columns)}, column ${inside % columns}`;
}

/** The inputs of one output: {channels, rows, columns}, each [from, to), or null if it sees all of them. */
function fieldOf(layer, index) {
  const [channels, rows, columns] = layer.outputShape;
  if (layer.kind === "linear") return null;
  const channel = Math.floor(index / (rows * columns)), row = Math.floor(index / columns) % rows, column = index % columns;
  if (layer.kind === "average") return { channels: [channel, channel + 1], rows: [0, layer.inputShape[1]], columns: [0, layer.inputShape[2]] };
  const side = (at, stride, padding, kernel) => {
    const from = at * layer.pool * stride - padding;
    return [from, from + (layer.pool - 1) * stride + kernel];
  };
  const inGroup = layer.shape[1], first = Math.floor((channel * layer.groups) / channels) * inGroup;
  return {
    channels: [first, first + inGroup],
    rows: side(row, layer.stride[0], layer.padding[0], layer.shape[2]),
    columns: side(column, layer.stride[1], layer.padding[1], layer.shape[3]),
  };
}

/** The picture that is fed. Returned: a view as of `gridView`. */
function makePicture(shape) {
  const [, rows, columns] = shape, readout = byId("fed-readout"), side = Math.max(1, Math.floor(140 / Math.max(rows, columns)));
  let values = null;
  const resting = "Point at a pixel to read its byte.";
  const view = gridView({
    shape, kind: "bytes", highest: 255, tallest: 150, characters: 9, width: 150, ground: "soft", fixed: () => [side, side],
    label: `The picture: ${rows} by ${columns} bytes. Arrow keys move through them.`,
    pick: () => {},
    hover: (index) => {
      const [row, column] = [Math.floor(index / columns), index % columns];
      readout.textContent = index === null || values === null ? resting : `Row ${row}, column ${column}: byte ${values[index]}, for ${(values[index] / 256).toFixed(4)}`;
      if (document.activeElement === view.canvas && index !== null) announce(readout.textContent);
    },
  });
  readout.textContent = resting;
  byId("fed-title").textContent = `What the networks see: ${rows}\u00d7${columns} bytes.`;
  byId("fed-size").textContent = `${rows}\u00d7${columns}`;
  byId("fed").append(view.canvas);
  return { ...view, draw: (image, marks) => view.draw((values = image), marks) };
}

/**
 * Builds the lines of a network below its heading. pick(layer, index): a cell was chosen. weights(layer): its button.
 * Returned: stages, of each its item of the list, its view, the button of its weights and hovered, which is called with
 * the cell under the pointer; and draw(result, marks), with result {hidden, logits, ranges} or null, marks[stage] as of
 * `gridView`.
 */
function makeStages(network, pick, weights) {
  const last = network.layers.length - 1;
  const stages = network.layers.map((layer, i) => {
    const isLast = i === last, range = make("span"), readout = make("output", { className: "readout" });
    const button = layer.codes && make("button", { type: "button" }, "Weights");
    const stage = { values: null, layer };
    const digits = isLast ? 8 : String(layer.qmax).length;
    const settings = {
      shape: layer.outputShape, kind: isLast ? "signed" : "codes", highest: layer.qmax, characters: digits,
      tallest: innerWidth < 700 ? 420 : 300, pick: (index) => pick(i, index),
      label: `${layer.name}: ${sizeOf(layer.outputShape)}${isLast ? " logits" : " codes"}. Arrow keys move through them, Enter shows how one was made.`,
      hover: (index) => {
        const value = index !== null && stage.values !== null ? stage.values[index] : null;
        const where = index === null ? "" : isLast ? network.classNames[index] : placeName(layer.outputShape, index);
        readout.textContent = value === null ? "" : `${where}: ${isLast ? "logit" : "code"} ${say(value)}`;
        stage.hovered(index);
        if (document.activeElement === view.canvas && value !== null) announce(readout.textContent);
      },
    };
    if (isLast) {
      const classes = network.classNames.length;
      settings.titles = network.classNames;
      settings.fixed = (available) => [Math.max(58, Math.min(88, Math.floor(available / Math.min(classes, 10)))), 48];
    }
    const view = gridView(settings);
    const gauge = make("span", { className: "gauge" }, ...Array.from({ length: 32 }, (_, bit) => make("i", { className: bit < layer.registerBits ? "used" : "" })));
    gauge.setAttribute("aria-hidden", "true");
    const line = make("div", { className: "line" }), about = make("div", { className: "about" });
    const head = make("div", {}, make("h3", {}, isLast ? `${layer.name}: the logits` : layer.name), " ", make("span", {}, `${sizeOf(layer.outputShape)}: ${deed(layer)}`));
    line.append(head, about);
    if (layer.codes) about.append(make("span", {}, `${layer.bits}-bit weights ${say(layer.lowest)} to ${say(layer.highest)}`));
    if (!isLast) about.append(make("span", {}, `${layer.activationBits}-bit codes 0 to ${layer.qmax}`));
    about.append(range, make("span", {}, "register ", gauge, `${layer.registerBits} of 32 bits`));
    if (button) {
      line.append(button);
      button.setAttribute("aria-expanded", "false");
      button.setAttribute("aria-label", `Weights of ${layer.name}`);
      button.addEventListener("click", () => weights(i));
    }
    const item = make("li", { className: "stage" }, line, make("div", { className: "map" }, view.canvas), readout);
    return Object.assign(stage, { item, button, range, settings, view, hovered: () => {} });
  });
  byId("stages").replaceChildren(...stages.map((stage) => stage.item));

  return {
    stages,
    draw(result, marks) {
      stages.forEach((stage, i) => {
        stage.values = result && (i === last ? result.logits : result.hidden[i]);
        if (i === last && result) stage.settings.highest = Math.max(1, ...result.logits.map(Math.abs));
        const bound = `at most \u00b1${say(stage.layer.accumulatorBound)}`;
        stage.range.textContent = result ? `sums ${say(result.ranges[i][0])} to ${say(result.ranges[i][1])} (${bound})` : `sums ${bound}`;
        stage.item.classList.toggle("waiting", marks[i + 1].shown === 0);
        stage.view.draw(stage.values, marks[i + 1]);
      });
    },
  };
}

/**
 * Step, play and all. changed(): draw again. Returned: shown(stage, size), how many cells of a stage's maps are there
 * by now; scanned(), the stage in the making and how far it is, 0..1, or null; begin(names), for another network.
 */
function makePlayer(changed) {
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)");
  let names = [], stage = Infinity, part = 1, running = null;
  const tell = () => {
    const isAll = stage >= names.length - 1 && part >= 1;
    byId("progress").textContent = isAll ? "" : `${names[stage]}: stage ${stage + 1} of ${names.length}.`;
    byId("play").textContent = running === null ? "Play" : "Pause";
    byId("all").setAttribute("aria-pressed", String(isAll && running === null));
    byId("play").setAttribute("aria-pressed", String(running !== null));
    changed();
  };
  const stop = () => {
    cancelAnimationFrame(running);
    running = null;
  };
  const go = () => {
    let before = performance.now(), waited = 0;
    const frame = (now) => {
      running = requestAnimationFrame(frame);
      const passed = now - before;
      before = now;
      if (part < 1) part = isCalm.matches ? 1 : Math.min(1, part + passed / (stage === 0 ? 300 : 1400));
      else if ((waited += passed) > 500) {
        if (stage >= names.length - 1) stop();
        else [stage, part, waited] = [stage + 1, isCalm.matches ? 1 : 0, 0];
      } else return;
      tell();
    };
    running = requestAnimationFrame(frame);
  };
  const isOver = () => stage >= names.length - 1 && part >= 1;
  byId("step").addEventListener("click", () => {
    stop();
    [stage, part] = isOver() ? [0, 1] : part < 1 ? [stage, 1] : [stage + 1, 1];
    tell();
  });
  byId("play").addEventListener("click", () => {
    if (running !== null) stop();
    else {
      if (isOver()) [stage, part] = [0, 0];
      go();
    }
    tell();
  });
  byId("all").addEventListener("click", () => {
    stop();
    [stage, part] = [Infinity, 1];
    tell();
  });
  return {
    begin(list) {
      names = list;
      stop();
      [stage, part] = [Infinity, 1];
      tell();
    },
    shown: (index, size) => (index < stage ? Infinity : index > stage ? 0 : part >= 1 ? Infinity : Math.floor(part * size)),
    scanned: () => (running !== null && part < 1 && stage < names.length ? { stage, part } : null),
  };
}
