// What is not instrumented crosses containers with us; memory of ours is freed by libraries and the other way round; what
// libraries keep for good is not ours to report.
extern "C" const char* __asan_default_options() {
  return "detect_container_overflow=0:alloc_dealloc_mismatch=0:detect_leaks=0";
}
