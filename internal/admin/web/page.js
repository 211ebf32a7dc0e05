// Keeps the page in step with the server: fetches its own address again and
// changes only what differs, so that focus, scroll, selection and what is folded
// open stay. Without this script the page is the same, as of when it was loaded.
'use strict';
(() => {
  const every = 2000;
  const live = document.getElementById('live');
  const gone = document.getElementById('gone');
  let held = false, timer = 0, running = null, lost = 0;

  const dot = document.createElement('span');
  dot.className = 'dot';
  const word = document.getElementById('live-word');
  const button = document.createElement('button');
  button.type = 'button';
  live.prepend(dot);
  live.append(button);

  // patch makes the node a, which is of the same kind, like b.
  function patch(a, b) {
    if (a.nodeType !== Node.ELEMENT_NODE) {
      if (a.nodeValue !== b.nodeValue) a.nodeValue = b.nodeValue;
      return;
    }
    for (const {name} of [...a.attributes]) {
      if (!b.hasAttribute(name) && !(a.nodeName === 'DETAILS' && name === 'open')) a.removeAttribute(name);
    }
    for (const {name, value} of [...b.attributes]) {
      if (a.getAttribute(name) !== value) a.setAttribute(name, value);
    }
    children(a, b);
  }

  // children patches lists. What has an id stays the same node, wherever it goes.
  function children(a, b) {
    const wants = [...b.childNodes];
    const ids = new Set(wants.map(n => n.id).filter(Boolean));
    let at = a.firstChild;
    const drop = () => { const next = at.nextSibling; at.remove(); at = next; };
    for (const want of wants) {
      if (want.id) {
        while (at && !ids.has(at.id)) drop();
        const have = at && at.id === want.id ? at : [...a.children].find(e => e.id === want.id);
        if (have) {
          if (have === at) at = at.nextSibling;
          else if (a.moveBefore) a.moveBefore(have, at); // keeps the focus
          else a.insertBefore(have, at);
          patch(have, want);
          continue;
        }
      } else if (at && !at.id && at.nodeType === want.nodeType && at.nodeName === want.nodeName) {
        const have = at;
        at = at.nextSibling;
        patch(have, want);
        continue;
      }
      a.insertBefore(document.importNode(want, true), at);
    }
    while (at) drop();
  }

  function say() {
    live.classList.toggle('held', held || document.hidden);
    const text = held ? 'Resume updates' : 'Pause updates';
    if (button.textContent !== text) button.textContent = text;
  }

  async function look() {
    clearTimeout(timer);
    if (held || document.hidden || running) return;
    const began = performance.now();
    running = new AbortController();
    const limit = setTimeout(() => running.abort(), 10000);
    try {
      const answer = await fetch(location.pathname + location.search, {signal: running.signal, cache: 'no-store', credentials: 'omit'});
      const text = await answer.text();
      if (!(answer.headers.get('content-type') || '').startsWith('text/html')) throw new Error('status ' + answer.status);
      if (!held) show(new DOMParser().parseFromString(text, 'text/html'));
      lost = 0;
      gone.hidden = true;
    } catch {
      lost = lost || Date.now();
      const said = 'The server cannot be reached. What is below is as of ' + (document.querySelector('#live-word time')?.textContent || 'earlier') + '.';
      if (gone.textContent !== said) gone.textContent = said;
      gone.hidden = false;
    }
    clearTimeout(limit);
    running = null;
    timer = setTimeout(look, Math.max(every, 10 * (performance.now() - began)));
  }

  function show(next) {
    patch(document.getElementById('main'), next.getElementById('main'));
    patch(word, next.getElementById('live-word'));
    if (document.title !== next.title) document.title = next.title;
  }

  button.addEventListener('click', () => { held = !held; say(); look(); });
  document.addEventListener('visibilitychange', () => { say(); look(); });
  document.addEventListener('change', e => { if (e.target.id === 'sort') e.target.form.requestSubmit(); });
  say();
  timer = setTimeout(look, every);
})();
