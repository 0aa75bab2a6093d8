'use strict';
// Heat maps are tables: each cell says its number, and reads without colours.

function mix(near, far, share) {
  const parts = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const [a, b] = [parts(near), parts(far)];
  return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * share)).join(',')})`;
}

function percent(value) {
  return value < 9.95 ? value.toFixed(1) : value.toFixed(0);
}

// Costs are coloured up to `most`, and small ones spread out: there the choice is made.
function shade(cell, cost, most) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const share = Math.min(1, Math.sqrt(cost / most));
  cell.style.background = mix(colour('--heat-near'), colour('--heat-far'), share);
  cell.style.color = colour(share < 0.45 ? '--heat-near-text' : '--heat-far-text');
}

function heatMap(map) {
  const costs = map.cells.flat().filter((cell) => cell !== null).map(([cost]) => cost);
  const most = Math.min(100, Math.max(5, ...costs));
  const table = document.createElement('table');
  table.className = 'heat';
  table.createCaption().textContent = `${map.row} down, ${map.column} across`;
  const head = table.insertRow();
  head.append(document.createElement('th'));
  for (const value of map.columns) {
    head.append(Object.assign(document.createElement('th'), {textContent: value}));
  }
  map.rows.forEach((value, r) => {
    const row = table.insertRow();
    row.append(Object.assign(document.createElement('th'), {textContent: value}));
    map.cells[r].forEach((cell, c) => {
      const td = row.insertCell();
      if (cell === null) {
        td.className = 'empty';
        td.title = 'not timed';
        return;
      }
      const [cost, brief] = cell;
      td.textContent = (brief ? '~' : '') + percent(cost);
      td.title = `${map.row}=${value}, ${map.column}=${map.columns[c]}: ` +
          `${percent(cost)} % slower than the best` + (brief ? ', stopped early' : '');
      shade(td, cost, most);
    });
  });
  return table;
}
