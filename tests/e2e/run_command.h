// Runs a program as a user does, and keeps its exit status and what it printed.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace genie::test {

struct Ran {
  int status = -1;
  std::string out;
  std::string err;
};

inline std::string read_all(FILE* file) {
  std::string text;
  std::array<char, 4096> chunk;
  while (const size_t got = fread(chunk.data(), 1, chunk.size(), file)) text.append(chunk.data(), got);
  return text;
}

// Runs `command` in a shell.
inline Ran run_command(const std::string& command) {
  Ran ran;
  std::string errors = (std::filesystem::temp_directory_path() / "genie_stderr_XXXXXX").string();
  const int fd = mkstemp(errors.data());
  if (fd < 0) return ran;
  FILE* pipe = popen((command + " 2>" + errors + " </dev/null").c_str(), "r");
  if (pipe != nullptr) {
    ran.out = read_all(pipe);
    const int raw = pclose(pipe);
    ran.status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
  }
  FILE* file = fdopen(fd, "r");
  ran.err = read_all(file);
  fclose(file);
  unlink(errors.c_str());
  return ran;
}

}  // namespace genie::test
