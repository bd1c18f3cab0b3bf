// Host: the files in which Linux says what a machine is and what a process may do.
//
// Purpose: everything that the doctor looks at, below a root folder, so that a tree recorded on another machine can be
//   looked at as well. What is not there reads as nothing.
// Thread-safety: any thread; nothing is kept. Ownership: values.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace genie::doctor {

class Host {
 public:
  // "/": the machine that this program runs on.
  explicit Host(std::string root);

  bool live() const noexcept { return root_.empty(); }
  // The place of `path` (absolute) in the tree.
  std::string at(std::string_view path) const;

  bool has(std::string_view path) const;
  // This process may open it for reading and writing.
  bool usable(std::string_view path) const;
  // The content, without white space at its end.
  std::optional<std::string> text(std::string_view path) const;
  std::vector<std::string> lines(std::string_view path) const;
  std::optional<uint64_t> number(std::string_view path) const;
  // Of "Name:   1234 kB" in a file of such lines: what stands behind the colon.
  std::optional<std::string> field(std::string_view path, std::string_view name) const;
  // What a folder holds, sorted.
  std::vector<std::string> names(std::string_view folder) const;
  // The path without symbolic links, in terms of the tree; empty when it leads nowhere.
  std::string resolved(std::string_view path) const;

 private:
  std::string root_;  // empty, or without a slash at its end
};

// Leading digits; nothing where there are none, or too many.
std::optional<uint64_t> leading_number(std::string_view text);
std::vector<std::string_view> words(std::string_view text);
// "1.5 GiB", "64 KiB".
std::string bytes_text(uint64_t bytes);

// The CPUs of "0-3,8".
std::vector<uint32_t> cpu_list(std::string_view text);

}  // namespace genie::doctor
