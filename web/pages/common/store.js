// A value that components follow.

import { useEffect, useState } from "./html.js";

/**
 * @template T
 * @typedef {object} Store
 * @property {() => T} get
 * @property {(next: T | ((now: T) => T)) => void} set
 * @property {(follower: () => void) => () => void} follow
 */

/**
 * @template T
 * @param {T} value
 * @returns {Store<T>}
 */
export function createStore(value) {
  /** @type {Set<() => void>} */
  const followers = new Set();
  return {
    get: () => value,
    set(next) {
      const changed =
        typeof next === "function" ? /** @type {(now: T) => T} */ (next)(value) : next;
      if (Object.is(changed, value)) return;
      value = changed;
      for (const follower of [...followers]) follower();
    },
    follow(follower) {
      followers.add(follower);
      return () => followers.delete(follower);
    },
  };
}

/**
 * The store's value; the component is rendered again when it changes.
 * @template T
 * @param {Store<T>} store
 * @returns {T}
 */
export function useStore(store) {
  const [, setValue] = useState(store.get());
  useEffect(() => {
    const read = () => setValue(() => store.get());
    read();
    return store.follow(read);
  }, [store]);
  return store.get();
}
