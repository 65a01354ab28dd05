// Draws one dashboard, named after the question mark of the address, from the values in data.json.
import {
  createDataFrame,
  createTheme,
  dateTime,
  FieldColorModeId,
  FieldType,
  getDisplayProcessor,
} from '@grafana/data';
import { BigValue, BigValueGraphMode, BigValueTextMode, PanelChrome, TimeSeries } from '@grafana/ui';
import { createRoot } from 'react-dom/client';

// Grafana's grid: 24 columns, rows of 30 px, 8 px between panels.
const WIDTH = 1392;
const ROW = 30;
const GAP = 8;
// What the components take when nobody provides another.
const theme = createTheme();

function place({ x, y, w, h }) {
  const column = (WIDTH - 2 * GAP) / 24;
  return {
    left: GAP + x * column,
    top: GAP + y * (ROW + GAP),
    width: w * column - GAP,
    height: h * (ROW + GAP) - GAP,
  };
}

function timeFrame(series, panel) {
  const { custom, ...defaults } = panel.fieldConfig.defaults;
  const color = { mode: FieldColorModeId.PaletteClassic };
  const config = {
    ...defaults,
    displayName: series.name,
    color,
    custom: {
      drawStyle: 'line',
      lineInterpolation: 'linear',
      showPoints: 'never',
      ...custom,
      stacking: { group: 'A', mode: 'none', ...custom?.stacking },
    },
  };
  const frame = createDataFrame({
    name: series.name,
    fields: [
      { name: 'Time', type: FieldType.time, values: series.times, config: {} },
      { name: series.name, type: FieldType.number, values: series.values, config },
    ],
  });
  frame.fields[0].display = getDisplayProcessor({ field: frame.fields[0], theme, timeZone: 'utc' });
  return frame;
}

function timeFrames(panel) {
  return panel.series.map((series, index) => {
    const frame = timeFrame(series, panel);
    const field = frame.fields[1];
    field.state = { seriesIndex: index, displayName: series.name };
    field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
    return frame;
  });
}

function Curves({ panel, width, height, range }) {
  return (
    <TimeSeries
      frames={timeFrames(panel)}
      width={width}
      height={height}
      timeRange={range}
      timeZone="utc"
      legend={panel.options.legend}
    />
  );
}

function Newest({ panel, width, height }) {
  const series = panel.series[0];
  const config = { color: { mode: FieldColorModeId.Thresholds }, ...panel.fieldConfig.defaults };
  const field = { name: '', type: FieldType.number, values: [], config };
  const value = getDisplayProcessor({ field, theme })(series.values[series.values.length - 1]);
  return (
    <BigValue
      theme={theme}
      width={width}
      height={height}
      value={{ ...value, title: '' }}
      colorMode={panel.options.colorMode}
      graphMode={BigValueGraphMode.None}
      textMode={BigValueTextMode.Value}
    />
  );
}

function Cell({ panel, range }) {
  const box = place(panel.gridPos);
  if (panel.type === 'row') {
    return <div className="row" style={{ ...box}}>{panel.title}</div>;
  }
  const Content = panel.type === 'stat' ? Newest : Curves;
  return (
    <div className="cell" style={{ left: box.left, top: box.top }}>
      <PanelChrome title={panel.title} description={panel.description} width={box.width} height={box.height}>
        {(width, height) =>
          panel.series.length === 0 ? 'No data' : <Content panel={panel} width={width} height={height} range={range} />
        }
      </PanelChrome>
    </div>
  );
}

const data = await (await fetch('data.json')).json();
const board = data.boards[location.search.slice(1)];
const from = dateTime(data.from);
const to = dateTime(data.to);
const range = { from, to, raw: { from, to } };
document.body.style.background = theme.colors.background.canvas;
document.body.style.color = theme.colors.text.primary;
createRoot(document.getElementById('board')).render(
  board.panels.map((panel) => <Cell key={panel.id} panel={panel} range={range} />)
);
