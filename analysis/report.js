// Curves that can be switched, and tables that sort. Without this script the page shows pictures and unsorted tables.

const PLOT_HEIGHT = 310, LEGEND_ROW = 20, LETTER = 6.6, SYMBOL = 48;  // pixels
// No button sends anything to a server.
const UNUSED = ['select2d', 'lasso2d', 'autoScale2d', 'zoomIn2d', 'zoomOut2d'];
const BUTTONS = {displaylogo: false, showSendToCloud: false, plotlyServerURL: '', modeBarButtonsToRemove: UNUSED};

const floats = packed => new Float32Array(Uint8Array.from(atob(packed.bdata), letter => letter.charCodeAt(0)).buffer);

// A line with an interval becomes two traces, its band and itself; they are switched together.
function traces(line) {
  if (!line.low) return [line];
  const [x, low, high] = [line.x, line.low, line.high].map(floats);
  line.customdata = [...low].map((end, index) => [end, high[index]]);
  const band = {x: [...x, ...[...x].reverse()], y: [...low, ...[...high].reverse()], legendgroup: line.legendgroup, mode: 'lines',
    line: {width: 0}, fill: 'toself', fillcolor: line.fillcolor, showlegend: false, hoverinfo: 'skip'};
  delete line.fillcolor;
  return [band, line];
}

// Plotly draws into the place of the picture, which stays for print. A curve is drawn when it comes near the window.
function draw(place) {
  const {lines, layout} = JSON.parse(place.querySelector('script').textContent);
  const data = lines.flatMap(traces).sort((a, b) => Boolean(a.name) - Boolean(b.name));  // bands lie below
  const names = lines.filter(trace => trace.name).map(trace => trace.name);
  const entry = SYMBOL + LETTER * Math.max(...names.map(name => name.length));
  place.parentElement.classList.add('drawn');
  const columns = Math.max(1, Math.floor((place.clientWidth - layout.margin.l) / entry));
  const legend = LEGEND_ROW * Math.ceil(names.length / columns);
  layout.height = PLOT_HEIGHT + legend;
  layout.margin.b += legend;
  Object.assign(layout.legend, {entrywidth: entry - SYMBOL, maxheight: 2 * legend});
  Plotly.newPlot(place, data, layout, {responsive: true, ...BUTTONS});
}

const near = new IntersectionObserver(seen => {
  for (const {target, isIntersecting} of seen) {
    if (isIntersecting) {
      near.unobserve(target);
      draw(target);
    }
  }
}, {rootMargin: '600px'});
document.querySelectorAll('.chart').forEach(place => near.observe(place));

// A click on a column's name sorts by its numbers, or by its words if it has none; another click turns the order round.
function sort(table, column, descending) {
  const text = row => row.cells[column].innerText.replace(/\u2212/g, '-').trim();
  const number = row => parseFloat(text(row).replace(/^[(<>\s]+/, ''));
  const rows = [...table.tBodies[0].rows];
  const numeric = rows.some(row => !isNaN(number(row)));
  const compare = numeric
    ? (a, b) => (isNaN(number(a)) - isNaN(number(b))) || (descending ? number(b) - number(a) : number(a) - number(b)) || 0
    : (a, b) => (descending ? -1 : 1) * text(a).localeCompare(text(b));
  table.tBodies[0].append(...rows.sort(compare));
}

for (const head of document.querySelectorAll('table.sorts th')) {
  head.tabIndex = 0;
  const turn = () => {
    const descending = head.ariaSort === 'ascending';
    for (const other of head.parentElement.cells) other.removeAttribute('aria-sort');
    head.ariaSort = descending ? 'descending' : 'ascending';
    sort(head.closest('table'), head.cellIndex, descending);
  };
  head.addEventListener('click', turn);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') turn(); });
}

// What is folded on the screen is printed.
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(folded => { folded.open = true; }));
