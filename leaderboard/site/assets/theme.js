// Runs before the page is drawn, so that a chosen theme does not flash. Storage may be closed to pages opened from a folder.
"use strict";
try {
  const theme = localStorage.getItem("persbench-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* the system's theme it is */ }
