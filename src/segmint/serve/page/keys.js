() => document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, [contenteditable]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const names = { k: "keep", d: "drop", ArrowLeft: "back", ArrowRight: "next" };
  const button = document.querySelector(`#pairs-${names[event.key]}`);
  if (button && button.offsetParent) button.click();
})
