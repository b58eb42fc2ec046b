// The search runs in a worker. Browsers refuse workers on pages that are opened as files: there a hidden frame does the same.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const page = frame.contentDocument;
      this.inside = frame.contentWindow;
      this.loaded = new Promise((done) => {
        page.open();
        this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
        this.inside.addEventListener("load", done);
        const script = page.createElement("script");
        script.src = url;
        page.write("<!DOCTYPE html><html><head></head></html>");
        page.head.append(script);
        page.close();
      });
    }
    postMessage(data) {
      this.loaded.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
