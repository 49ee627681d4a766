// A tree of plain objects, and how the page is made to look like it.
//
// 1. Text is text: nothing here reads HTML, so nothing that a job or a client wrote can become any.
// 2. Nodes are kept where they fit (same key, or same tag in the same place), so that focus, scroll
//    position, open details and hover survive a redraw every second.
// 3. Only what differs is written: live regions speak when their text changes, and not otherwise.

const SVG = "http://www.w3.org/2000/svg";

/** `h("p", {class: "x", onclick: f}, "text", child)`; null, false and undefined children vanish. */
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: children.flat(Infinity).filter(present) };
}

function present(child) {
  return child !== null && child !== undefined && child !== false && child !== "";
}

/** Make the children of `node` look like `children`. */
export function render(node, children) {
  patchChildren(node, [children].flat(Infinity).filter(present));
}

function patchChildren(parent, wanted) {
  const keyed = new Map();
  for (const child of parent.childNodes) {
    if (child.__key !== undefined) keyed.set(child.__key, child);
  }
  let place = parent.firstChild;
  for (const vnode of wanted) {
    const key = vnode.props?.key;
    let node = null;
    if (key !== undefined) {
      node = matching(keyed.get(key), vnode);
      keyed.delete(key); // each node once, even where a key comes twice
    }
    if (key === undefined && place !== null && place.__key === undefined) node = matching(place, vnode);
    if (node === null) {
      node = create(vnode, parent);
      parent.insertBefore(node, place);
    } else if (node === place) {
      place = place.nextSibling;
    } else {
      parent.insertBefore(node, place);
    }
    update(node, vnode);
  }
  while (place !== null) {
    const next = place.nextSibling;
    place.remove();
    place = next;
  }
}

function matching(node, vnode) {
  if (!node) return null;
  if (typeof vnode !== "object") return node.nodeType === Node.TEXT_NODE ? node : null;
  return node.nodeType === Node.ELEMENT_NODE && node.localName === vnode.tag ? node : null;
}

function create(vnode, parent) {
  if (typeof vnode !== "object") return document.createTextNode("");
  const drawn = vnode.tag === "svg" || parent.namespaceURI === SVG;
  const node = drawn
    ? document.createElementNS(SVG, vnode.tag)
    : document.createElement(vnode.tag);
  if (vnode.props.key !== undefined) node.__key = vnode.props.key;
  return node;
}

function update(node, vnode) {
  if (typeof vnode !== "object") {
    const text = String(vnode);
    if (node.data !== text) node.data = text;
    return;
  }
  const before = node.__props ?? {};
  const { key: _, ...props } = vnode.props;
  for (const name in before) {
    if (!(name in props)) set(node, name, null);
  }
  for (const name in props) {
    if (before[name] !== props[name]) set(node, name, props[name]);
  }
  node.__props = props;
  patchChildren(node, vnode.children);
}

function set(node, name, value) {
  if (name.startsWith("on")) node[name] = value;
  else if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : String(value));
}
