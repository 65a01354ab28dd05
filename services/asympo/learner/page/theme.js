// Runs before the first paint, so that a chosen colour scheme does not flash.
"use strict";
try {
  const theme = localStorage.getItem("asympo-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be switched off; the system's scheme then holds.
}
