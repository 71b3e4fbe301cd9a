"""What a page must keep that people look at, as JavaScript for a tab of `qattrain.export.browser`."""

# For every visible element with text of its own: the contrast of that text to its background, by WCAG 2.1.
CONTRASTS = """
(() => {
  const rgba = text => {
    const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color') ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = element => {
    const own = rgba(getComputedStyle(element).backgroundColor);
    if (own[3] === 1) return own.slice(0, 3);
    return over(own, element.parentElement ? behind(element.parentElement) : [255, 255, 255]);
  };
  const found = [];
  for (const element of document.body.querySelectorAll('*')) {
    const text = [...element.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('').trim();
    if (!text || !element.checkVisibility() || ['title', 'desc'].includes(element.localName)) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = luminance(over(rgba(element.closest('svg') ? style.fill : style.color), ground));
    const paper = luminance(ground);
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    found.push([Math.round(ratio * 100) / 100, element.localName + ': ' + text.slice(0, 60)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""
