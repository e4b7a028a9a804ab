// error: line 3, column 8: unknown operator `rellu`
graph(%x : f32[2]) {
  %y = rellu(%x) : f32[2]
  return %y
}
