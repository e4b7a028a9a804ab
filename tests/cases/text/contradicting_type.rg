// error: the result is declared f32[2, 4], but inference says f32[2, 5]
graph(%x : f32[2, 3], %w : f32[3, 5]) {
  %y = matmul(%x, %w) : f32[2, 4]
  return %y
}
