"""Our TFDS builders, one a file: facts (publisher, licence, digests, class names) and one generator each.

None of them needs TensorFlow: images are yielded as encoded bytes and written as array_record, in the publisher's
order. Raw files are read where the user has them and downloaded from the publisher where he has not.
"""
