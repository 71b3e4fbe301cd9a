"use strict";
// The slate: strokes by mouse, finger, pen or keyboard, light on black. What was done is a list of actions, so that
// undoing is drawing all but the last one again, to the very same pixels.

const SLATE_SIDE = 280;
const KEY_STEP = 10;

/** changed(): called after every change by hand. Returned: grey() and picture(image, shape). */
function makeSlate(changed) {
  const canvas = byId("pad"), cursor = byId("cursor"), brush = byId("brush");
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  let actions = []; // {clear}, {image, shape} or {size, points: [x, y, x, y, ...]}
  let pointer = null, stroke = null, place = [SLATE_SIDE / 2, SLATE_SIDE / 2], isDown = false;

  const blank = () => {
    context.fillStyle = "#000000";
    context.fillRect(0, 0, SLATE_SIDE, SLATE_SIDE);
  };
  const segment = ({ size, points }, end) => {
    const [x, y] = points.slice(end - 2, end), [fromX, fromY] = end > 2 ? points.slice(end - 4, end - 2) : [x, y];
    context.strokeStyle = "#ffffff";
    context.lineCap = "round";
    context.lineWidth = size;
    context.beginPath();
    context.moveTo(fromX, fromY);
    context.lineTo(x, y);
    context.stroke();
  };
  const show = (action) => {
    if (action.points) for (let end = 2; end <= action.points.length; end += 2) segment(action, end);
    else blank();
    if (action.image) showImage(context, action.image, action.shape);
  };
  const redraw = () => {
    blank();
    actions.forEach(show);
    changed();
  };
  const act = (action) => {
    actions.push(action);
    if (actions.length > 200) actions = actions.slice(-200);
    show(action);
  };
  const begin = (x, y) => {
    stroke = { size: Number(brush.value), points: [x, y] };
    act(stroke);
  };
  const extend = (x, y) => {
    stroke.points.push(x, y);
    segment(stroke, stroke.points.length);
  };

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * SLATE_SIDE) / box.width, ((event.clientY - box.top) * SLATE_SIDE) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (pointer !== null || (event.pointerType === "mouse" && event.button !== 0)) return;
    pointer = event.pointerId;
    canvas.setPointerCapture(pointer);
    lift();
    begin(...at(event));
    changed();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== pointer) return;
    const passed = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
    for (const one of passed.length ? passed : [event]) extend(...at(one));
    changed();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      if (event.pointerId === pointer) pointer = stroke = null;
    });
  }

  // The keyboard's pen: a ring that arrows move; with the pen down it draws.
  const lift = () => {
    isDown = false;
    cursor.classList.remove("down");
  };
  const showCursor = () => {
    const scale = canvas.clientWidth / SLATE_SIDE, side = Number(brush.value) * scale;
    Object.assign(cursor.style, { left: `${place[0] * scale}px`, top: `${place[1] * scale}px`, width: `${side}px`, height: `${side}px` });
  };
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("focus", showCursor);
  canvas.addEventListener("blur", lift);
  canvas.addEventListener("keydown", (event) => {
    if (event.key in moves) {
      const step = event.shiftKey ? 2 : KEY_STEP;
      place = place.map((value, i) => Math.min(SLATE_SIDE, Math.max(0, value + step * moves[event.key][i])));
      if (isDown) extend(...place);
    } else if (event.key === " ") {
      isDown = !isDown;
      cursor.classList.toggle("down", isDown);
      if (isDown) begin(...place);
      announce(isDown ? "Pen down" : "Pen up");
    } else if (event.key === "Backspace" || (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey))) {
      undo();
    } else if (event.key === "Escape" && isDown) {
      lift();
    } else return;
    event.preventDefault();
    showCursor();
    if (isDown) changed();
  });

  const undo = () => {
    lift();
    if (actions.pop()) redraw();
  };
  byId("undo").addEventListener("click", undo);
  byId("clear").addEventListener("click", () => {
    lift();
    act({ clear: true });
    changed();
  });
  brush.addEventListener("input", showCursor);
  blank();

  return {
    /** The last thing done: an example's image if nothing was drawn over it. */
    image: () => actions.at(-1)?.image ?? null,
    put: (image, shape) => act({ image, shape }),
    /** Grey of every pixel, 0..255, row by row. */
    grey: () => {
      const pixels = context.getImageData(0, 0, SLATE_SIDE, SLATE_SIDE).data, grey = new Uint8Array(pixels.length / 4);
      for (let i = 0; i < grey.length; i++) grey[i] = pixels[4 * i];
      return grey;
    },
  };
}

/** An image of the network's own size, stretched over the slate (or another canvas). */
function showImage(context, image, [, rows, columns], smooth = true) {
  const small = make("canvas", { width: columns, height: rows }), pixels = small.getContext("2d").createImageData(columns, rows);
  image.forEach((value, i) => pixels.data.set([value, value, value, 255], 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, context.canvas.width, context.canvas.height);
}
