/** The form for the token of a server that needs one for reads. One token serves every request of the page. */

import { ApiError, ask, keepToken } from "../data/api";
import { TICKERS } from "../data/documents";
import { byId, setText } from "../text/elements";

export class Access {
  private readonly form = byId<HTMLFormElement>("access");
  private readonly input = byId<HTMLInputElement>("access-token");
  private readonly hint = byId("access-hint");

  constructor(private readonly onAccepted: () => void) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.offer(this.input.value.trim());
    });
  }

  private async offer(token: string): Promise<void> {
    if (!token) return;
    setText(this.hint, "Checking …");
    try {
      await ask(TICKERS, {}, { token });
      keepToken(token);
      this.input.value = "";
      setText(this.hint, "");
      this.onAccepted();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setText(this.hint, error.code === "UNAUTHENTICATED" ? "That token was not accepted." : error.message);
      this.input.focus();
      this.input.select();
    }
  }
}
