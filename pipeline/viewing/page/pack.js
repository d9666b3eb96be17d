// Reads what viewing/packing.py writes. Everything of the pages lives in this one object.
"use strict";
const Spacer = {};

// The header, and `arrays`: name -> {shape, data}, from the bytes of a packed file (an ArrayBuffer or a view).
Spacer.unpack = async function (bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = new Uint8Array(await new Response(packed).arrayBuffer());
  if (String.fromCharCode(...content.subarray(0, 4)) !== "SPK1") {
    throw new Error("not a packed scene");
  }
  const length = new DataView(content.buffer).getUint32(4, true);
  const header = JSON.parse(new TextDecoder().decode(content.subarray(8, 8 + length)));
  const arrays = new Map();
  let place = 8 + length;
  for (const { name, type, shape } of header.arrays) {
    const count = shape.reduce((product, size) => product * size, 1);
    const width = { uint8: 1, uint16: 2, int32: 4 }[type];
    const planes = content.subarray(place, place + count * width);
    place += count * width;
    arrays.set(name, { shape, data: Spacer.joinPlanes(planes, count, type, shape[shape.length - 1]) });
  }
  return { header, arrays };
};

// Lowest bytes first, then the next ones; int32 as differences along the last axis.
Spacer.joinPlanes = function (planes, count, type, last) {
  if (type === "uint8") {
    return planes;
  }
  if (type === "uint16") {
    const values = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      values[i] = planes[i] | (planes[count + i] << 8);
    }
    return values;
  }
  const values = new Int32Array(count);
  for (let start = 0; start < count; start += last) {
    let sum = 0;
    for (let i = start; i < start + last; i++) {
      const low = planes[i] | (planes[count + i] << 8);
      const high = planes[2 * count + i] | (planes[3 * count + i] << 8);
      sum = (sum + (low | (high << 16))) | 0;
      values[i] = sum;
    }
  }
  return values;
};

Spacer.fromBase64 = function (text) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) {
    bytes[i] = raw.charCodeAt(i);
  }
  return bytes;
};

// An element with attributes and children; strings become text, never markup.
Spacer.element = function (tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null && value !== false) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children);
  return made;
};
