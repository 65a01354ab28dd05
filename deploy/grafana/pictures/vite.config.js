// Some of Grafana's packages look at Node's variables.
export default {
  define: { 'process.env': {}, global: 'globalThis' },
  esbuild: { jsx: 'automatic' },
  build: { chunkSizeWarningLimit: 20000, target: 'esnext' },
};
