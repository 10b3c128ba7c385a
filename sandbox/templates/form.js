// Groups the digits of the card number as on the card, and adds the slash to the expiry date. The page works without
// this script, because the server accepts both in any format.
(() => {
  const number = (text) => {
    const digits = text.replace(/\D/g, '').slice(0, 19);
    const groups = /^3[47]/.test(digits) ? /^(\d{1,4})(\d{0,6})(\d*)$/ : /(\d{1,4})/;
    return digits.split(groups).filter(Boolean).join(' ');
  };
  // A slash ends the month, so "1/29" is January. Otherwise, the third digit starts the year.
  const expiry = (text) => {
    const typed = text.replace(/\D+/g, '/').replace(/^\/+/, '').replace(/^(?:([1-9])\/|([2-9]))/, '0$1$2/');
    const digits = typed.replace(/\//g, '');
    const slash = digits.length > 2 || typed.endsWith('/') ? '/' : '';
    return digits.slice(0, 2) + slash + digits.slice(2, 6);
  };
  for (const [id, format] of [['card-number', number], ['expiry', expiry]]) {
    const field = document.getElementById(id);
    const reformat = () => {
      const before = field.value.slice(0, field.selectionStart);
      const text = format(field.value);
      if (text === field.value) return;
      const atEnd = before.length === field.value.length;
      field.value = text;
      // Keep the caret after the same digit.
      const caret = atEnd ? text.length : format(before).length;
      if (document.activeElement === field) field.setSelectionRange(caret, caret);
    };
    field.addEventListener('input', reformat);
    reformat();
  }
})();
