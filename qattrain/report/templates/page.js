// Comfort on top of a page that is whole without it: tables to sort, values on charts, series to hide, commands to
// copy, and the images behind a cell of a confusion matrix. Nothing is fetched and nothing is stored.
'use strict';

const make = (name, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
};

// Tables: a click on a column's name sorts by it, a second one the other way round; a last row of totals stays last.
const value = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const number = parseFloat(text.replace(/,|^[<+]\s*/g, ''));
  return { text, number: Number.isNaN(number) ? -Infinity : number };
};

const sort = (table, column) => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const down = heads[column].getAttribute('aria-sort') === 'ascending';
  const rows = [...body.rows].filter(row => !row.classList.contains('total'));
  const keys = new Map(rows.map(row => [row, value(row, column)]));
  const numeric = [...keys.values()].some(key => key.number > -Infinity && /^[-+<\d]/.test(key.text));
  rows.sort((a, b) => {
    const [one, other] = [keys.get(a), keys.get(b)];
    const order = numeric ? one.number - other.number || 0 : 0;
    return (order || one.text.localeCompare(other.text, 'en', { numeric: true })) * (down ? -1 : 1);
  });
  body.prepend(...rows);
  heads.forEach(head => head.removeAttribute('aria-sort'));
  heads[column].setAttribute('aria-sort', down ? 'descending' : 'ascending');
};

for (const table of document.querySelectorAll('table')) {
  if (table.tBodies[0].rows.length < 3) continue;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make('button', { type: 'button', className: 'sort', title: 'Sort' }, ...head.childNodes);
    button.addEventListener('click', () => sort(table, column));
    head.append(button);
  });
}

// Charts: the value nearest to the pointer; a click on the name of a series hides it or shows it again.
for (const svg of document.querySelectorAll('svg[data-chart]')) {
  const { labels, series } = JSON.parse(svg.dataset.chart);
  const hidden = new Set();
  const tip = make('div', { className: 'tip', hidden: true });
  const dot = document.createElementNS(svg.namespaceURI, 'circle');
  dot.setAttribute('class', 'dot');
  dot.setAttribute('r', 5);
  svg.parentElement.append(tip);

  const hide = () => { tip.hidden = true; dot.remove(); };
  const show = event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let nearest = 40 ** 2, found = null;
    for (const one of series) {
      if (hidden.has(one.number)) continue;
      for (const point of one.points) {
        const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2;
        if (distance < nearest) [nearest, found] = [distance, { name: one.name, point }];
      }
    }
    if (!found) return hide();
    const [left, top, across, up] = found.point;
    const lines = [found.name, `${labels[0]}: ${across}`, `${labels[1]}: ${up}`];
    tip.replaceChildren(...lines.map(line => make('span', {}, line)));
    tip.hidden = false;
    dot.setAttribute('cx', left);
    dot.setAttribute('cy', top);
    svg.append(dot);
    const width = svg.parentElement.clientWidth, place = left / scale + svg.clientLeft;
    tip.style.left = `${Math.max(0, Math.min(place - tip.offsetWidth / 2, width - tip.offsetWidth))}px`;
    tip.style.top = `${svg.offsetTop + top / scale - tip.offsetHeight - 12}px`;
  };
  svg.addEventListener('pointermove', show);
  svg.addEventListener('pointerdown', show);
  svg.addEventListener('pointerleave', hide);

  for (const text of svg.querySelectorAll('[data-toggle]')) {
    const toggle = event => {
      if (event.key && event.key !== 'Enter' && event.key !== ' ') return;
      event.preventDefault();
      const number = Number(text.dataset.toggle), off = !hidden.delete(number);
      if (off) hidden.add(number);
      for (const part of svg.querySelectorAll(`[data-series="${number}"]`)) part.classList.toggle('hidden', off);
      for (const name of svg.querySelectorAll(`[data-toggle="${number}"]`)) name.setAttribute('aria-pressed', !off);
      hide();
    };
    svg.setAttribute('role', 'group');
    for (const [name, state] of [['role', 'button'], ['tabindex', 0], ['aria-pressed', true]]) text.setAttribute(name, state);
    text.addEventListener('click', toggle);
    text.addEventListener('keydown', toggle);
  }
}

// Commands: a button beside each one copies it; where that is not allowed it is selected instead.
for (const code of document.querySelectorAll('pre code')) {
  const button = make('button', { type: 'button', className: 'copy' }, 'Copy');
  button.addEventListener('click', async () => {
    try {
      await navigator.clipboard.writeText(code.textContent.trim());
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  code.after(button);
}

// Confusion matrices: a cell of errors shows its images below the table.
for (const errors of document.querySelectorAll('.errors')) {
  const picked = make('div', { className: 'picked', hidden: true });
  picked.setAttribute('role', 'status');
  errors.querySelector('.scroll').after(picked);
  const heads = errors.querySelectorAll('thead th');
  for (const cell of errors.querySelectorAll('td[data-cell]')) {
    const [row, column] = [cell.parentElement, cell.cellIndex];
    const button = make('button', { type: 'button', title: 'Show its images' }, ...cell.childNodes);
    button.addEventListener('click', () => {
      const images = [...errors.querySelectorAll(`li[data-cell="${cell.dataset.cell}"]`)];
      const total = Number(button.textContent.replace(/,/g, ''));
      const which = `True ${row.cells[0].textContent}, predicted ${heads[column].textContent}`;
      const list = make('ul', { className: 'tiles' }, ...images.map(image => image.cloneNode(true)));
      list.style = errors.querySelector('details .tiles').style.cssText;
      const missing = total - images.length;
      const rest = missing ? `; ${missing.toLocaleString('en')} more are not on this page` : '';
      picked.replaceChildren(make('p', {}, `${which}: ${images.length} of ${total.toLocaleString('en')} images${rest}.`), list);
      picked.hidden = false;
    });
    cell.append(button);
  }
}
