"""Theme, style sheet and scripts of the web app."""

from ..utils.extras import extra


with extra("app", "The web app"):
    import gradio as gr


# System fonts: the page must not load anything from other servers.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    # The colors of the theme for these texts have too little contrast.
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_100",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_dark="*primary_600",
)
CSS = """
footer { display: none !important; }
body.dark { color-scheme: dark; }
.gradio-container { max-width: 1400px !important; margin: auto; width: 100%; }
#introduction h1 { font-size: 1.3rem; font-weight: 650; margin: 0; }
#introduction p { margin: 2px 0 0; }
#layout { display: grid; gap: 14px; grid-template-columns: 350px minmax(0, 1fr); grid-template-rows: auto 1fr;
  grid-template-areas: "inputs output" "settings output"; align-items: start; }
#inputs { grid-area: inputs; }
#output { grid-area: output; }
#settings { grid-area: settings; }
#layout > * { min-width: 0 !important; width: 100%; }
#camera { display: none; }
#start ol { list-style: decimal; margin: 0 0 10px 1.4rem; }
#start li { margin: 4px 0; }
#start button { align-items: center; background: var(--background-fill-secondary); border-radius: 8px;
  border: 1px solid var(--border-color-primary); cursor: pointer; display: flex; flex-wrap: wrap; font: inherit;
  gap: 8px; padding: 8px 12px; text-align: left; }
#start button img { border-radius: 4px; height: 60px; margin: 0; width: auto; }
#start button b { flex-basis: 100%; }
#status ul, #references ul { margin: 0.3rem 0 0 1.2rem; list-style: disc; }
#references p { margin: 0 0 6px; }
.problem { border-left: 4px solid #d93025; padding: 2px 0 2px 10px; overflow-wrap: anywhere; }
.label.normal, .label.anomalous { border-radius: 6px; color: white; display: inline-block; font-weight: 650;
  padding: 1px 8px; white-space: nowrap; }
.label.anomalous { background: #b3261e; }
.label.normal { background: #2e7d32; }
.verdict { border: 1px solid var(--border-color-primary); border-left: 8px solid; border-radius: 8px;
  padding: 8px 12px; }
.verdict.anomalous { border-left-color: #d93025; }
.verdict.normal { border-left-color: #2e7d32; }
.verdict .headline { align-items: center; display: flex; flex-wrap: wrap; gap: 4px 12px; }
.verdict .headline .label { font-size: 1.35rem; padding: 2px 12px; }
.verdict .name { font-weight: 600; overflow-wrap: anywhere; }
.verdict .place { margin-left: auto; }
.verdict p { margin: 4px 0 0; }
.verdict .hint { font-style: italic; }
.meter { background: var(--neutral-200); border-radius: 4px; height: 8px; margin: 8px 0 6px; position: relative; }
.dark .meter { background: var(--neutral-700); }
.meter span { border-radius: 4px; display: block; height: 100%; }
.anomalous .meter span { background: #d93025; }
.normal .meter span { background: #2e7d32; }
.meter i { background: var(--body-text-color); height: 16px; position: absolute; top: -4px; width: 2px; }
#results { max-height: 340px; overflow: auto; }
#results table { border-collapse: collapse; width: 100%; }
#results caption { caption-side: top; padding: 0 0 4px; text-align: left; }
#results thead th { background: var(--background-fill-primary); position: sticky; text-align: left; top: 0;
  z-index: 1; }
#results thead button { cursor: pointer; font: inherit; font-weight: 600; padding: 4px 6px; white-space: nowrap; }
#results thead th[aria-sort=ascending] button::after { content: " ▲"; }
#results thead th[aria-sort=descending] button::after { content: " ▼"; }
#results tbody tr { border-top: 1px solid var(--border-color-primary); }
#results tbody tr.photo { cursor: pointer; }
#results tbody tr.anomalous { background: color-mix(in srgb, #d93025 9%, transparent); }
#results tbody tr.photo:hover { background: color-mix(in srgb, var(--color-accent) 12%, transparent); }
#results tbody tr.selected { box-shadow: inset 5px 0 0 var(--color-accent); }
#results td, #results tbody th { font-weight: 400; padding: 4px 6px; text-align: left; vertical-align: middle; }
#results tbody th { overflow-wrap: anywhere; }
#results .number { font-variant-numeric: tabular-nums; }
#results .thumb { padding-left: 10px; width: 66px; }
#results .thumb img { border-radius: 4px; height: 48px; object-fit: cover; width: 48px; }
#results .thumb span { align-items: center; background: #7a5b00; border-radius: 4px; color: white; display: flex;
  font-weight: 700; height: 28px; justify-content: center; width: 48px; }
#results .open { font: inherit; padding: 6px 0; text-align: left; text-decoration: underline; }
#results .open[aria-current=true] { font-weight: 650; }
#results thead th { font-weight: 600; padding: 4px 0; }
#results thead th.Photo { padding-left: 10px; }
:is(#summary, #results, #status, #example) .html-container { padding: 0 !important; }
#summary .verdict { scroll-margin-top: 8px; }
:is(button, input, a, summary, [tabindex]):focus-visible, label:has(input[type=radio]:focus-visible) {
  outline: 3px solid var(--color-accent) !important; outline-offset: 2px !important; }
#results :focus-visible { outline-offset: -2px !important; }
@media (pointer: coarse) { #camera { display: flex; } }
@media (max-width: 799px) {
  .gradio-container > .main, .gradio-container main { padding: 8px !important; }
  #introduction .wide { display: none; }
  #introduction p { font-size: 0.85rem; }
  #layout { grid-template-columns: minmax(0, 1fr); grid-template-rows: none;
    grid-template-areas: "inputs" "output" "settings"; gap: 10px; }
  #camera { order: -1; }
  #files, #good { max-height: 118px; }
  :is(#files, #good) .wrap { font-size: 0; }
  :is(#files, #good) .wrap .or { display: none; }
  :is(#files, #good) .wrap::after { content: "Choose photos"; font-size: 1rem; }
  #start button img { height: 34px; }
  #results .p-value { display: none; }
  #results table { table-layout: fixed; }
  #results th.Photo { width: 62px; }
  #results th.Score { width: 62px; }
  #results th.Decision { width: 124px; }
  #results .thumb { padding-left: 8px; }
  #pictures { display: flex; flex-wrap: nowrap !important; overflow-x: auto; scroll-snap-type: x mandatory; }
  #pictures > * { flex: 0 0 92% !important; min-width: 0 !important; scroll-snap-align: start; }
  .verdict .headline .label { font-size: 1.5rem; }
  #results { max-height: none; padding: 0; }
}
"""
# Runs when the page is loaded. Phones offer photos instead of any file, and the camera button opens the camera;
# screen readers read new results.
ON_LOAD = """() => {
  const prepare = () => {
    const camera = document.getElementById('camera')?.parentElement.querySelector(':scope > input[type=file]');
    if (camera && !camera.hasAttribute('capture')) {
      camera.accept = 'image/*';
      camera.setAttribute('capture', 'environment');
    }
    for (const [id, label] of [['files', 'Photos to check'], ['good', 'Good photos']]) {
      for (const input of document.querySelectorAll(`#${id} input[type=file]`))
        if (input.accept !== 'image/*') input.accept = 'image/*';
      for (const button of document.querySelectorAll(`#${id} button.upload-container`))
        button.setAttribute('aria-label', `${label}: choose or drop files`);
    }
    for (const name of ['status', 'summary', 'references']) {
      const region = document.getElementById(name);
      if (region && !region.hasAttribute('aria-live')) region.setAttribute('aria-live', 'polite');
    }
  };
  new MutationObserver(prepare).observe(document.body, {childList: true, subtree: true});
  prepare();
}"""
# On a narrow screen, go to the result once it is there.
TO_RESULT = """() => {
  if (window.innerWidth < 800)
    setTimeout(() => document.querySelector('#summary .verdict')?.scrollIntoView({block: 'start'}), 200);
}"""
# Of the example: `click` of the whole component would not know the keyboard.
EXAMPLE = "element.addEventListener('click', event => { if (event.target.closest('button')) trigger('click'); });"
# Of the table: select a photo, and sort by a column. The focus stays where it is when the table is drawn again.
TABLE = """
let sorted = null, focused = null;
const sort = () => {
  const body = element.querySelector('tbody');
  if (!sorted || !body) return;
  const value = row => row.children[sorted.column]?.dataset.value ?? '';
  const rows = [...body.querySelectorAll('tr.photo')];
  rows.sort((a, b) => sorted.sign * (sorted.kind === 'number'
    ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), undefined, {numeric: true})));
  for (const row of rows.reverse()) body.prepend(row);
  element.querySelectorAll('thead th').forEach((cell, column) => {
    if (cell.hasAttribute('aria-sort'))
      cell.setAttribute('aria-sort', column !== sorted.column ? 'none' : sorted.sign > 0 ? 'ascending' : 'descending');
  });
};
const key = target => target?.dataset?.number ? `.open[data-number="${target.dataset.number}"]`
  : target?.dataset?.column ? `button[data-column="${target.dataset.column}"]` : null;
element.addEventListener('focusin', event => { focused = key(event.target); });
element.addEventListener('focusout', event => { if (event.relatedTarget) focused = null; });
element.addEventListener('click', event => {
  const header = event.target.closest('button[data-sort]');
  if (header) {
    const column = Number(header.dataset.column);
    const first = header.dataset.sort === 'number' ? -1 : 1;
    sorted = {column, kind: header.dataset.sort, sign: sorted?.column === column ? -sorted.sign : first};
    sort();
    return;
  }
  const row = event.target.closest('tr.photo');
  if (row) trigger('select', {number: Number(row.dataset.number)});
});
watch('value', () => {
  sort();
  if (focused && !element.contains(document.activeElement)) element.querySelector(focused)?.focus();
});
"""


__all__ = ["CSS", "EXAMPLE", "ON_LOAD", "TABLE", "THEME", "TO_RESULT"]
