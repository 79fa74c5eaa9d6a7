module readers

go 1.26
