// Runs before the first paint, so that a chosen theme does not flash the other one.
'use strict';
(() => {
  let theme = null;
  try {
    theme = JSON.parse(localStorage.getItem('qvl.settings') || '{}').theme;
  } catch {
    // Storage is forbidden or damaged: the system's theme it is; store.js reports it.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
})();
