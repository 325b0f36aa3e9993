/** The link that downloads the shown period as a CSV file. */

import { authorization } from "../data/api";
import { byId, element, setText } from "../text/elements";

export class Download {
  private readonly link = byId<HTMLAnchorElement>("chart-download");
  private readonly hint = byId("download-hint");

  constructor() {
    this.link.addEventListener("click", (event) => {
      const headers = authorization();
      setText(this.hint, "");
      if (!headers) return; // the browser downloads it by itself
      event.preventDefault();
      void this.fetchFile(headers);
    });
  }

  /** A link cannot send a token, so the page fetches the file. */
  private async fetchFile(headers: { Authorization: string }): Promise<void> {
    try {
      const response = await fetch(this.link.href, { headers });
      if (!response.ok) throw new Error((await response.json()).errors[0].message);
      const [, name = "export.csv"] = response.headers.get("Content-Disposition")?.match(/filename="(.+)"/) ?? [];
      const href = URL.createObjectURL(await response.blob());
      element("a", { href, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(href));
    } catch (error) {
      setText(this.hint, `The file could not be downloaded: ${(error as Error).message}`);
    }
  }
}
