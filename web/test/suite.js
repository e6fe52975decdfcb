// What the tests run on: one demo and one browser for all.

/** @typedef {{ demo: import("./demo.js").Demo, browser: import("./browser.js").Browser }} Setting */
export {};
