import { defineConfig } from "vite";

const application = "http://127.0.0.1:8000";

export default defineConfig({
  build: { rollupOptions: { input: ["index.html", "ag-ui.html"] } },
  // `npm run dev` shows a change at once, and sends requests to the running application.
  server: { proxy: { "/api": application, "/agent": application } },
});
