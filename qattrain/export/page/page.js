"use strict";
// The page itself: its state, the worker that answers, the check of itself, and the address that keeps what is shown.

/** What runs in the worker: keeps the networks and answers requests. It may use only the scripts of ENGINE in page_export.py. */
function serve(reply) {
  const networks = [];
  return ({ kind, ...request }) => {
    if (kind === "load") networks.push(...request.packed.map(readPacked));
    if (kind === "check") {
      const { index, image, expected } = request;
      reply({ kind, index, isEqual: networks.every((network, n) => check(network, image, expected[n], index)) });
    }
    if (kind === "answer") {
      const { shown, grey, side, handwriting } = request;
      const { image, notes } = request.image ? { image: request.image, notes: [] } : prepare(grey, side, side, networks[0].inputShape, handwriting);
      const results = image ? networks.map((network) => run(network, image)) : null;
      const { hidden, ranges } = results ? results[shown] : {};
      reply({ kind, image, notes, shown, hidden, ranges, logits: results && results.map((result) => result.logits) });
    }
  };
}

/** Something that answers `serve`'s requests: a worker, or this page itself where there is none, or it failed. */
function makeServant(received, failed) {
  const here = () => {
    const handle = serve((message) => setTimeout(() => received(message)));
    return (message) => handle(message);
  };
  const source = `${byId("engine").textContent}\nconst handle = (${serve})(postMessage);\nonmessage = ({ data }) => handle(data);`;
  try {
    const worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    worker.onmessage = ({ data }) => received(data);
    worker.onerror = (event) => {
      event.preventDefault();
      failed(here());
    };
    return (message) => worker.postMessage(message);
  } catch {
    return here();
  }
}

/** For those who listen: said once things are calm. */
function announce(text) {
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => (byId("live").textContent = text), 350);
}

function start() {
  const data = JSON.parse(byId("data").textContent);
  const entries = data.networks.map((entry) => ({ ...entry, bytes: fromBase64(entry.packed) }));
  for (const entry of entries) entry.network = readPacked(entry.bytes);
  const examples = data.examples.map((example) => ({ ...example, image: fromBase64(example.image) }));
  const { classNames, inputShape } = entries[0].network;
  // image: the bytes fed, or null; result: what the shown network makes of them; example, chosen: null or what is open.
  const state = { shown: 0, image: null, logits: null, result: null, example: null, chosen: null, weights: null };
  let stages = null, drawer = null;
  const rows = byId("rows");

  // ---- requests: at most one at a time and one a frame; what was drawn meanwhile is sent next, as it is by then
  let isBusy = false, isWaiting = false, isSpent = false, isChecking = false, asked = 0, checks = 0, equal = 0;
  const ask = () => {
    isWaiting = true;
    rows.setAttribute("aria-busy", "true");
    if (isBusy || isSpent) return;
    [isBusy, isSpent, isWaiting, asked] = [true, true, false, performance.now()];
    requestAnimationFrame(() => {
      isSpent = false;
      if (isWaiting) ask();
    });
    const image = slate.image(), grey = image ? null : slate.grey();
    servant({ kind: "answer", shown: state.shown, image, grey, side: SLATE_SIDE, handwriting: data.handwriting });
  };
  const received = (message) => {
    if (message.kind === "check") {
      equal += message.isEqual;
      checks++;
      return proceed();
    }
    isBusy = false;
    showAnswer(message);
    if (isWaiting) return ask();
    rows.setAttribute("aria-busy", "false");
    if (!isChecking) proceed();
  };
  const images = data.proof.images.map(fromBase64), badge = byId("check");
  const proceed = () => {
    isChecking = true;
    if (checks < images.length) servant({ kind: "check", index: checks, image: images[checks], expected: entries.map((entry) => entry.expected) });
    else judge(`${equal} of ${images.length} equal`, equal === images.length);
  };
  const judge = (text, isGood) => {
    badge.classList.add(isGood ? "equal" : "unequal");
    const what = isGood ? "Checked itself just now: " : "Do not trust this page. Its check of itself failed: ";
    badge.replaceChildren(isGood ? "\u2713 " : "\u2717 ", what, make("strong", {}, text));
  };
  let servant = makeServant(received, (substitute) => {
    [servant, isBusy] = [substitute, false];
    servant({ kind: "load", packed: entries.map((entry) => entry.bytes) });
    ask();
    if (isChecking) proceed();
  });
  servant({ kind: "load", packed: entries.map((entry) => entry.bytes) });

  // ---- what is shown
  const method = () => entries[state.shown].method;
  const showRows = makeRows(entries, (index) => show(index));
  const showMethods = makeMethods(entries, (name) => {
    const wanted = entries.findIndex((entry) => entry.method === name && entry.bits === entries[state.shown].bits);
    show(wanted < 0 ? entries.findIndex((entry) => entry.method === name) : wanted);
  });
  const showAnswer = ({ image, notes, logits, shown, hidden, ranges }) => {
    Object.assign(state, { image, logits, result: image && { hidden, ranges, logits: logits[shown] } });
    if (image && shown !== state.shown) state.result = run(entries[state.shown].network, image);
    showVerdict();
    byId("fed-notes").textContent = sentence(notes.join("; "));
    const taken = performance.now() - asked;
    document.documentElement.dataset.milliseconds = taken.toFixed(1);
    // Not of the first answer: the worker was only starting.
    byId("taken").textContent = image && isChecking ? `${entries.length === 1 ? "Answered" : `All ${entries.length} networks answered`} in ${Math.max(1, Math.round(taken))} ms.` : "";
    paintSoon();
  };
  const showVerdict = () => {
    const verdict = showRows(state.logits, state.shown, method());
    byId("verdict").textContent = verdict;
    const label = state.example === null ? null : examples[state.example].label;
    const known = label === null ? "" : `This image is labelled ${classNames[label]}.`;
    byId("truth").textContent = known;
    announce(`${verdict} ${known}`);
  };

  // Pictures come after the answer, in the next frame. Where the next answer is awaited by then, it comes first and they
  // follow it; but in a long stroke on a slow machine they wait a quarter of a second at most.
  let painting = null, postponed = null;
  const paintSoon = () => {
    painting ??= requestAnimationFrame((now) => {
      painting = null;
      postponed ??= now;
      if (!(isBusy || isWaiting) || now - postponed > 250) paint();
    });
  };
  const player = makePlayer(paintSoon);
  const picture = makePicture(inputShape);
  const paint = () => {
    if (!stages) return;
    postponed = null;
    const { layers } = entries[state.shown].network, shapes = [inputShape, ...layers.map((layer) => layer.outputShape)];
    const marks = shapes.map(([channels, rows, columns], stage) => ({ shown: player.shown(stage, rows * columns === 1 ? channels : rows * columns), chosen: null, field: null }));
    const scan = player.scanned();
    const pointed = hovered ?? state.chosen;
    if (scan && scan.stage > 0 && shapes[scan.stage][1] * shapes[scan.stage][2] > 1) {
      const index = Math.min(marks[scan.stage].shown, shapes[scan.stage][1] * shapes[scan.stage][2] - 1);
      marks[scan.stage - 1].field = { ...fieldOf(layers[scan.stage - 1], index), channels: [0, Infinity] };
    } else if (pointed) marks[pointed.layer].field = fieldOf(layers[pointed.layer], pointed.index);
    if (state.chosen) marks[state.chosen.layer + 1].chosen = state.chosen.index;
    picture.draw(state.image, marks[0]);
    stages.draw(state.result, marks);
    if (state.chosen && state.result) {
      const { layer, index } = state.chosen;
      inspector.show(entries[state.shown].network, layer, layer ? state.result.hidden[layer - 1] : state.image, index, state.result.logits);
    }
  };
  let hovered = null;

  // ---- the network in the middle, the cell below its stage, the drawer of weights
  const show = (index) => {
    const isNew = index !== state.shown || stages === null;
    state.shown = index;
    const { network, label } = entries[index], accuracy = network.testAccuracy;
    if (isNew) {
      closeWeights();
      stages = makeStages(network, (layer, cellIndex) => choose({ layer, index: cellIndex }), toggleWeights);
      stages.stages.forEach((stage, layer) => {
        stage.hovered = (cellIndex) => {
          hovered = cellIndex === null ? null : { layer, index: cellIndex };
          paintSoon();
        };
      });
      hovered = null;
      byId("inside-heading").textContent = entries.length > 1 ? `Inside: ${widthOf(entries[index])}` : `Inside ${label}`;
      byId("accuracy").textContent = accuracy === null ? "" : `It is right on ${(100 * accuracy).toFixed(2)}\u00a0% of the test images.`;
      if (state.image) state.result = run(network, state.image);
      if (state.chosen && (state.chosen.layer >= network.layers.length || state.chosen.index >= product(network.layers[state.chosen.layer].outputShape))) state.chosen = null;
      player.begin(["picture", ...network.layers.map((layer) => layer.name)]);
      if (state.chosen) place();
    }
    showMethods(method());
    showVerdict();
    keepAddress();
    paintSoon();
  };
  const place = () => {
    stages.stages[state.chosen.layer].item.append(inspector.panel);
  };
  const choose = (chosen) => {
    const isMoved = !state.chosen || state.chosen.layer !== chosen.layer;
    state.chosen = chosen;
    if (isMoved) place();
    paint();
    if (isMoved) inspector.panel.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    announce(inspector.panel.querySelector("h4").textContent);
    keepAddress();
  };
  const inspector = makeInspector(
    (key) => {
      const { layer, index } = state.chosen, next = stepFrom(index, key, entries[state.shown].network.layers[layer].outputShape, 1);
      choose({ layer, index: next });
    },
    () => {
      const canvas = stages.stages[state.chosen.layer].view.canvas;
      state.chosen = null;
      inspector.panel.remove();
      canvas.focus({ preventScroll: true });
      keepAddress();
      paintSoon();
    },
  );
  const closeWeights = () => {
    if (drawer === null) return;
    drawer.panel.remove();
    stages.stages[state.weights].button.setAttribute("aria-expanded", "false");
    [drawer, state.weights] = [null, null];
  };
  const toggleWeights = (layer) => {
    const wasOpen = state.weights === layer;
    closeWeights();
    if (wasOpen) return;
    const { item, button } = stages.stages[layer], { chosen } = state, shaped = entries[state.shown].network.layers[layer];
    const output = chosen && chosen.layer === layer ? Math.floor(chosen.index / (shaped.outputShape[1] * shaped.outputShape[2])) : 0;
    state.weights = layer;
    drawer = openWeights(item, shaped, output);
    button.setAttribute("aria-expanded", "true");
    drawer.panel.scrollIntoView({ block: "nearest" });
  };

  // ---- examples and the slate
  const slate = makeSlate(() => {
    const index = examples.findIndex((example) => example.image === slate.image());
    state.example = index < 0 ? null : index;
    markExamples();
    ask();
    keepAddress();
  });
  const buttons = examples.map((example, index) => {
    const canvas = make("canvas", { width: inputShape[2], height: inputShape[1] });
    showImage(canvas.getContext("2d"), example.image, inputShape, false);
    const button = make("button", { type: "button" }, canvas), label = example.label === null ? "" : `, a ${classNames[example.label]}`;
    button.setAttribute("aria-label", `${example.hard ? "Hard example" : "Example"} ${index + 1}${label}`);
    button.addEventListener("click", () => {
      take(index);
      keepAddress();
    });
    byId(example.hard ? "hard" : "examples").append(make("li", {}, button));
    return button;
  });
  for (const [list, isHard] of [["examples", false], ["hard", true]]) {
    byId(list).hidden = byId(`${list}-heading`).hidden = !examples.some((example) => Boolean(example.hard) === isHard);
  }
  const markExamples = () => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === state.example)));
  const take = (index) => {
    state.example = index;
    slate.put(examples[index].image, inputShape);
    markExamples();
    ask();
  };

  // ---- the address: #bits=4&example=3&cell=conv2.3.1.2
  let keeping = null;
  const keepAddress = () => {
    clearTimeout(keeping);
    keeping = setTimeout(() => history.replaceState(null, "", `#${addressOf(state, entries)}`), 150);
  };
  const restore = (address) => {
    clearTimeout(keeping);
    const wanted = readAddress(new URL(address).hash.slice(1), entries, examples.length);
    const isClosing = state.chosen !== null && wanted.chosen === null;
    state.chosen = wanted.chosen;
    if (isClosing) inspector.panel.remove();
    if (wanted.example !== null && wanted.example !== state.example) take(wanted.example);
    show(wanted.shown ?? state.shown);
    if (state.chosen) place();
  };
  // Not location.hash: the address may have been kept again before this event came.
  addEventListener("hashchange", (event) => restore(event.newURL));

  const refresh = () => {
    readPalette();
    paintSoon();
    drawer?.redraw();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) refresh();
    width = innerWidth;
  });

  // On a narrow screen the answers follow the slate at once, and the picture with its examples comes after them.
  const isNarrow = matchMedia("(max-width: 43.99rem)"), draw = byId("picture").parentElement;
  const arrange = () => (isNarrow.matches ? byId("answers").after(byId("picture")) : draw.append(byId("picture")));
  isNarrow.addEventListener("change", arrange);
  arrange();

  const { executed } = data;
  byId("executed").textContent = executed
    ? `Before this file was written, its own script was executed by ${executed.by} on ${say(executed.images)} images, and every logit and code equalled those of the integer model.`
    : "This file was written without its script having been executed: no Node.js or browser was at hand. What vouches for it is its check of itself.";
  byId("checked").textContent = `Opened, it computes ${images.length} ${data.proof.from === "noise" ? "images of noise" : data.proof.from} again with every network and compares all logits and hidden codes with those that Python computed.`;
  readPalette();
  if (!/(^|&)bits=|net=/.test(location.hash)) state.shown = Math.max(0, entries.findIndex((entry) => entry.bits === 4));
  if (examples.length) take(Math.min(data.first, examples.length - 1));
  else ask();
  restore(location.href);
}

/** What is shown, for the address. */
function addressOf({ shown, example, chosen }, entries) {
  const { bits, method, network } = entries[shown];
  const isUnique = bits !== null && entries.filter((entry) => entry.bits === bits && entry.method === method).length === 1;
  const parts = [isUnique ? `bits=${bits}` : `net=${shown}`];
  if (isUnique && hasMethods(entries)) parts.push(`method=${method}`);
  if (example !== null) parts.push(`example=${example}`);
  if (chosen) {
    const [, rows, columns] = network.layers[chosen.layer].outputShape, { index } = chosen;
    const place = [Math.floor(index / (rows * columns)), Math.floor(index / columns) % rows, index % columns];
    parts.push(`cell=${network.layers[chosen.layer].name}.${place.join(".")}`);
  }
  return parts.join("&");
}

/** The opposite: {shown, example, chosen}, each null where the address does not say, or says nonsense. */
function readAddress(text, entries, examples) {
  const given = new URLSearchParams(text), whole = (word) => (/^\d{1,6}$/.test(word ?? "") ? Number(word) : null);
  const method = given.get("method"), net = whole(given.get("net"));
  const index = net === null ? entries.findIndex((entry) => String(entry.bits) === given.get("bits") && (method === null || String(entry.method) === method)) : net;
  const shown = index >= 0 && index < entries.length ? index : null;
  const example = whole(given.get("example")), [name, ...place] = (given.get("cell") ?? "").split(".");
  const { layers } = entries[shown ?? 0].network, layer = layers.findIndex((one) => one.name === name);
  let chosen = null;
  if (layer >= 0) {
    const [channels, rows, columns] = layers[layer].outputShape, [channel, row, column] = place.map(whole);
    const isThere = place.length === 3 && channel !== null && channel < channels && row !== null && row < rows && column !== null && column < columns;
    if (isThere) chosen = { layer, index: (channel * rows + row) * columns + column };
  }
  return { shown, example: example !== null && example < examples ? example : null, chosen };
}

try {
  start();
} catch (error) {
  byId("check").classList.add("unequal");
  byId("check").textContent = `This page does not work: ${error.message}`;
  throw error;
}
