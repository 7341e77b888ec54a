// Tokens go in where the cursor is, and commands to the clipboard.
document.addEventListener("click", (event) => {
  const insert = event.target.closest("[data-insert]");
  if (insert) {
    const box = document.querySelector("#prompt textarea");
    const words = insert.dataset.insert;
    const [start, end] = [box.selectionStart, box.selectionEnd];
    const before = box.value.slice(0, start);
    const gap = before && !/\s$/.test(before) ? " " : "";
    box.focus();
    box.setRangeText(gap + words + " ", start, end, "end");
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    const told = () => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy as command"; }, 2000); };
    const select = () => getSelection().selectAllChildren(copy.closest("figure").querySelector("code"));
    if (navigator.clipboard) navigator.clipboard.writeText(copy.dataset.copy).then(told, select); else select();
  }
});
