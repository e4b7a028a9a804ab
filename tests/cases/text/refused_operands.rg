// error: line 3, column 3: in this node
graph(%x : f32[2, 3], %w : f32[4, 5]) {
  %y = matmul(%x, %w)
  return %y
}
