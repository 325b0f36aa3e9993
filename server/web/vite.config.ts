import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";

const MIN_BYTES = 1024;

/** Writes a `.gz` beside each asset that shrinks by a tenth, so that the server need not compress while it answers. */
function compressed(): Plugin {
  let assets = "";
  return {
    name: "compressed",
    apply: "build",
    configResolved: (config) => {
      assets = resolve(config.root, config.build.outDir, config.build.assetsDir);
    },
    closeBundle: () => {
      for (const name of readdirSync(assets)) {
        const bytes = readFileSync(join(assets, name));
        const packed = gzipSync(bytes, { level: 9 });
        if (bytes.length >= MIN_BYTES && packed.length < bytes.length * 0.9) {
          writeFileSync(join(assets, `${name}.gz`), packed);
        }
      }
    },
  };
}

export default defineConfig({
  // Relative, as every address in the pages, so that a proxy may serve them below a path.
  base: "./",
  plugins: [compressed()],
  publicDir: false,
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    // The Content-Security-Policy allows no data: URLs.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    chunkSizeWarningLimit: 5000,
    rolldownOptions: {
      // The dashboard at `/`, and GraphiQL at `/graphql` in a browser.
      input: { dashboard: "index.html", graphiql: "graphiql.html" },
      // "use client" matters only to servers that render React, so its warning is noise.
      onLog: (level, log, handle) => {
        if (log.code !== "MODULE_LEVEL_DIRECTIVE") handle(level, log);
      },
    },
  },
  worker: { format: "es" },
  oxc: { jsx: { runtime: "automatic" } },
});
