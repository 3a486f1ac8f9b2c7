// The browser's time zone: working hours are counted by the person's own day.
document.querySelector("[name=timezone]").value = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "UTC";
