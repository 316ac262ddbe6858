// Making elements. Texts become text nodes and are never read as HTML.

/** An element with attributes; `on…` are listeners, `class` may be a list, null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = Array.isArray(value) ? value.filter(Boolean).join(" ") : value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return add(element, ...children);
}

/** Appends nodes and texts; null and false are left out. */
export function add(parent, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : String(child));
  }
  return parent;
}

/** Puts these in the place of all that `parent` has. */
export function show(parent, ...children) {
  parent.replaceChildren();
  return add(parent, ...children);
}

/** Sets a text only when it is another one: what a screen reader reads is not interrupted. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Says something to whoever uses a screen reader. */
export function announce(text) {
  const place = document.getElementById("announce");
  place.textContent = "";
  setTimeout(() => (place.textContent = text), 50);
}

export function badge(text, kind = "") {
  return h("span", { class: ["badge", kind] }, text);
}

export function notice(text, kind = "problem") {
  return h("p", { class: ["notice", kind], role: kind === "problem" ? "alert" : null }, text);
}

/** A list of names and values; pairs without a value are left out. */
export function facts(...pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}
