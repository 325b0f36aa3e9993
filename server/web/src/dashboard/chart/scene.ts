/** What the chart draws: one period of one ticker. */

import type { Price } from "../data/documents";
import type { Form } from "./choice";
import type { Hole, Item, Stretch } from "./stretches";

export interface Scene {
  form: Form;
  period: Stretch;
  items: Item[];
  holes: Hole[];
  recovered: Stretch[];
  backfilled: Stretch[];
  /** The instant of the first row. Before it nothing is stored, even if a candle or the period starts earlier. */
  begin: number;
  requested: Price[];
  /** Whether the source of each price is known, so that backfilled prices can be drawn differently. */
  isSourced: boolean;
}

export const EMPTY_SCENE: Scene = {
  form: "line",
  period: { from: 0, to: 1 },
  items: [],
  holes: [],
  recovered: [],
  backfilled: [],
  begin: 0,
  requested: [],
  isSourced: true,
};
