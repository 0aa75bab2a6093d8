const data = JSON.parse(document.getElementById('data').textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const charts = {};

function draw(id, config) {
  if (charts[id]) charts[id].destroy();
  config.options = Object.assign({animation: false, responsive: true, maintainAspectRatio: false},
                                 config.options);
  charts[id] = new Chart(byId(id), config);
}

function axis(title, more) {
  return Object.assign({
    title: {display: true, text: title, color: colour('--muted')},
    ticks: {color: colour('--muted')},
    grid: {color: colour('--line')},
  }, more);
}

// Chart.js labels every minor tick of a logarithmic axis: these are the ones to keep.
function logAxis(title, values, more) {
  const known = values.filter((value) => value > 0);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const ticks = [];
  const steps = Math.log10(high / low) > 3 ? [1] : [1, 2, 5];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
    for (const step of steps) ticks.push({value: step * 10 ** power});
  }
  return axis(title, Object.assign({
    type: 'logarithmic', min: low, max: high,
    afterBuildTicks: (scale) => {
      scale.ticks = ticks.filter(({value}) => value >= scale.min && value <= scale.max);
    },
    ticks: {color: colour('--muted'), callback: (value) => Number(value).toLocaleString('en')},
  }, more));
}

// Room around the values on a logarithmic axis.
function apart(values) {
  const known = values.filter((value) => value > 0);
  return [Math.min(...known) / 1.3, Math.max(...known) * 1.3];
}

const tokenAxis = () => axis('tokens', {
  type: 'logarithmic',
  min: data.layers[0]?.tokens,
  max: data.layers.at(-1)?.tokens,
  afterBuildTicks: (scale) => {
    const all = data.layers.map((layer) => layer.tokens);
    const few = all.filter((tokens, i) => i === 0 || i === all.length - 1 || Math.log2(tokens) % 2 === 0);
    scale.ticks = few.map((value) => ({value}));
  },
  ticks: {color: colour('--muted'), callback: (value) => value},
});

const legend = (display = true) => ({
  display, position: 'top', align: 'end', reverse: false,
  labels: {color: colour('--text'), boxWidth: 18, boxHeight: 2},
});
const us = (value) => `${value.toPrecision(4)} us`;
// What was not measured has a hollow mark.
const fillOf = (name) => data.layers.map(
    (layer) => layer.source === 'measured' ? colour(name) : colour('--card'));

function drawLayers() {
  const line = (label, key, name, more) => Object.assign({
    label, borderColor: colour(name), pointBorderColor: colour(name),
    backgroundColor: colour(name), pointBackgroundColor: fillOf(name), borderWidth: 2, pointRadius: 3,
    data: data.layers.map((layer) => ({x: layer.tokens, y: layer[key], source: layer.source})),
  }, more);
  const sources = [...new Set(data.layers.map((layer) => layer.source))].join(', ');
  const all = data.layers.flatMap((layer) => [layer.best_us, layer.reference_us, layer.floor_us]);
  const datasets = [line(`best, ${sources}`, 'best_us', '--best'),
                    line(`reference, ${sources}`, 'reference_us', '--reference')];
  if (data.read_gbps > 0) {
    datasets.push(line('floor, computed', 'floor_us', '--floor', {pointRadius: 0, borderDash: [6, 4]}));
  }
  draw('layer', {
    type: 'line', data: {datasets},
    options: {
      clip: 8,
      interaction: {mode: 'index', intersect: false},
      scales: {x: tokenAxis(), y: logAxis('us a layer', apart(all))},
      plugins: {
        legend: legend(),
        tooltip: {callbacks: {
          title: (items) => `${items[0].parsed.x} tokens`,
          label: (item) => `${item.dataset.label.split(',')[0]}: ${us(item.parsed.y)}`,
        }},
      },
    },
  });
  draw('speedup', {
    type: 'bar',
    data: {
      labels: data.layers.map((layer) => layer.tokens),
      datasets: [{
        data: data.layers.map((layer) => layer.speedup),
        backgroundColor: data.layers.map((layer) => layer.source !== 'measured' ? colour('--card') :
            layer.speedup >= 1 ? colour('--good') : colour('--bad')),
        borderColor: data.layers.map((layer) => layer.speedup >= 1 ? colour('--good') : colour('--bad')),
        borderWidth: 1.5, maxBarThickness: 28,
      }],
    },
    options: {
      scales: {x: axis('tokens', {grid: {display: false}}), y: axis('times faster', {beginAtZero: true, grid: {
        color: ({tick}) => colour(tick.value === 1 ? '--text' : '--line'),
      }})},
      plugins: {legend: legend(false), tooltip: {callbacks: {
        title: (items) => `${items[0].label} tokens`,
        label: (item) => `${item.parsed.y.toFixed(2)}x, ${data.layers[item.dataIndex].source}`,
      }}},
    },
  });
}

function drawRoofline() {
  const at = (layer, time) => ({x: layer.flops / layer.bytes, y: layer.flops / time / 1e6, layer});
  const timed = data.layers.filter((layer) => layer.best_us);
  const best = timed.map((layer) => at(layer, layer.best_us));
  const reference = timed.filter((layer) => layer.reference_us).map((layer) => at(layer, layer.reference_us));
  const xs = best.map((point) => point.x);
  const points = (label, values, name) => ({
    label, data: values, borderColor: colour(name), pointRadius: 4,
    pointBackgroundColor: values.map(({layer}) => colour(layer.source === 'measured' ? name : '--card')),
    backgroundColor: colour(name),
  });
  const datasets = [points('best', best, '--best'), points('reference', reference, '--reference')];
  const ys = [...best, ...reference].map((point) => point.y);
  if (data.read_gbps > 0 && data.tflops > 0 && xs.length > 0) {
    const [low, high] = apart(xs);
    const ridge = data.tflops * 1e3 / data.read_gbps;
    const roof = [low, Math.min(Math.max(ridge, low), high), high].map(
        (x) => ({x, y: Math.min(data.tflops, x * data.read_gbps / 1e3)}));
    ys.push(...roof.map((point) => point.y));
    datasets.push({label: `roof: ${Math.round(data.read_gbps)} GB/s, ${Math.round(data.tflops)} TFLOP/s`,
                   data: roof, showLine: true, pointRadius: 0, borderColor: colour('--floor'),
                   backgroundColor: colour('--floor'), borderDash: [6, 4], borderWidth: 2});
  }
  draw('roofline', {
    type: 'scatter', data: {datasets},
    options: {
      scales: {x: logAxis('operations a byte', apart(xs)), y: logAxis('TFLOP/s', apart(ys))},
      plugins: {legend: legend(), tooltip: {
        filter: (item) => item.raw.layer !== undefined,
        callbacks: {label: ({raw, dataset}) => `${dataset.label}, ${raw.layer.tokens} tokens: ` +
            `${raw.y.toPrecision(3)} TFLOP/s, ${raw.layer.source}`},
      }},
    },
  });
}

function drawRejected() {
  // Every rule has its name: the chart grows with them.
  byId('rejected').parentElement.style.height = `${Math.max(300, 60 + 19 * data.rejected.length)}px`;
  draw('rejected', {
    type: 'bar',
    data: {
      labels: data.rejected.map(([rule]) => rule),
      datasets: [{data: data.rejected.map(([, count]) => count), backgroundColor: colour('--reference'),
                  maxBarThickness: 22}],
    },
    options: {
      indexAxis: 'y',
      scales: {x: logAxis('points', [1, ...data.rejected.map(([, count]) => count * 1.2)]),
               y: axis('', {title: {display: false}, grid: {display: false},
                            ticks: {color: colour('--muted'), autoSkip: false}})},
      plugins: {legend: legend(false)},
    },
  });
}

function drawStage() {
  const group = data.groups.find((one) => stageName(one) === byId('stage').value &&
                                 String(one.tokens) === byId('tokens').value);
  byId('maps').replaceChildren();
  for (const id of ['sensitivity', 'convergence']) charts[id]?.destroy();
  if (!group) {
    byId('about').textContent = 'No point of this GEMM was timed at this number of tokens.';
    return;
  }
  byId('about').textContent = `Best: ${group.best}, ${us(group.best_us)} ${group.source}; ` +
      `${group.num_looks} timed looks in this journal.`;
  draw('sensitivity', {
    type: 'bar',
    data: {
      labels: group.parameters.map((parameter) => parameter.name),
      datasets: [{data: group.parameters.map((parameter) => parameter.range),
                  backgroundColor: colour('--best'), maxBarThickness: 22, minBarLength: 2}],
    },
    options: {
      indexAxis: 'y',
      scales: {x: axis('% slower', {beginAtZero: true}),
               y: axis('', {title: {display: false}, grid: {display: false}})},
      plugins: {legend: legend(false), tooltip: {callbacks: {
        label: (item) => group.parameters[item.dataIndex].values.map(
            ([value, cost, brief]) => `${value}: ${brief ? '~' : ''}+${percent(cost)} %`),
      }}},
    },
  });
  draw('convergence', {
    type: 'line',
    data: {datasets: [{
      data: group.convergence.map(([x, looks, best]) => ({x, y: 100 * (best / group.best_us - 1), looks, best})),
      stepped: 'before', borderColor: colour('--best'), backgroundColor: colour('--best'), borderWidth: 2,
      pointRadius: 3,
    }]},
    options: {
      scales: {x: axis('seconds since the first look', {type: 'linear', min: 0}),
               y: axis('% above the final best', {beginAtZero: true, suggestedMax: 1})},
      plugins: {legend: legend(false), tooltip: {callbacks: {
        title: (items) => `look ${items[0].raw.looks}, ${items[0].raw.x.toFixed(2)} s`,
        label: (item) => `${us(item.raw.best)}, ${item.raw.y.toFixed(2)} % above`,
      }}},
    },
  });
  byId('maps').append(...group.maps.map(heatMap));
}

function stageName(group) {
  const variants = new Set(data.groups.map((one) => one.variant));
  return variants.size > 1 ? `${group.stage} ${group.variant}` : group.stage;
}

function fillChoices() {
  const choose = (id, values) => {
    for (const value of new Set(values)) byId(id).add(new Option(value, value));
    byId(id).addEventListener('change', drawStage);
  };
  choose('stage', data.groups.map(stageName));
  choose('tokens', data.groups.map((group) => group.tokens).sort((a, b) => a - b));
}

function drawAll() {
  if (data.layers.length > 0) {
    drawLayers();
    drawRoofline();
  }
  if (data.rejected.length > 0) drawRejected();
  drawStage();
}

// The page follows the system until someone chooses.
function setUpTheme() {
  const dark = matchMedia('(prefers-color-scheme: dark)');
  byId('theme').addEventListener('click', () => {
    const isDark = root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches;
    root.dataset.theme = isDark ? 'light' : 'dark';
    drawAll();
  });
  dark.addEventListener('change', drawAll);
}

Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
setUpTheme();
fillChoices();
drawAll();
